"""What is asked of numbers: ``p50_ms=2`` as a budget, ``p99_ms>2`` as a reason to fail, and a recipe's goals."""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from ...export.measurement import Value
from ..errors import UsageError
from ..metric import Metric
from ..recipe_problems import nearest
from .contender import Run

Operator = Literal["<", "<=", ">", ">="]

REGRESSION = "regression"
NUMBERS = (
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "file_bytes",
    "peak_memory_bytes",
    "throughput",
    "speedup",
    "parameters",
    "macs",
)
"""Of an engine, beside its metric."""


@dataclass(frozen=True)
class Condition:
    """What must not be true of an engine."""

    text: str
    """As it was written."""
    name: str
    operator: Operator
    limit: float
    """Shares as such: 0.05 for ``5%``."""

    def holds(self, value: float) -> bool:
        """Whether it is true of a value, which then fails."""
        return {
            "<": value < self.limit,
            "<=": value <= self.limit,
            ">": value > self.limit,
            ">=": value >= self.limit,
        }[self.operator]


class Judgement(Value):
    """A condition against an engine's number."""

    condition: str
    engine: str
    """Its mark in the comparison."""
    value: float | None
    """None where it was not measured, or cannot be judged; such a condition counts as failed."""
    failed: bool
    sentence: str


@dataclass(frozen=True)
class Budget:
    """A line in the chart of metric against latency, and the side of it where an engine should be."""

    limit: float
    """Of the p50 in milliseconds, or of the metric."""
    is_latency: bool
    goal: str = ""
    """Of a recipe; empty for a budget of the command line."""
    runs: tuple[str, ...] = ()
    """The letters of those whose recipes have the goal; the budgets of a command line are for all."""

    @property
    def label(self) -> str:
        """In words, such as ``budget`` or ``A, B: min_speedup``."""
        return f"{', '.join(self.runs)}: {self.goal}" if self.goal else "budget"

    def concerns(self, letter: str) -> bool:
        """Whether it is for the engines of a run."""
        return not self.runs or letter in self.runs


def condition(text: str, metric: Metric | None) -> Condition:
    """Read ``metric op value``; `metric` is that of the run that is judged, None for a profile.

    Raises UsageError that says what can be asked.
    """
    found = re.fullmatch(r"\s*([^<>=]+?)\s*(<=|>=|<|>)\s*([^<>=]+?)\s*", text)
    if found is None:
        raise UsageError(
            f"--fail-if {text!r}: is no condition; write a number's name, one of < <= > >=, and a value, "
            "such as 'p99_ms>2'"
        )
    names = [REGRESSION, *NUMBERS, *([metric.name] if metric else [])]
    name = _known(found[1], names, f"--fail-if {text!r}")
    where, operator = f"--fail-if {text!r}", cast(Operator, found[2])
    if name == REGRESSION:
        if operator != ">" or not found[3].endswith("%"):
            raise UsageError(f"{where}: a regression is more than a share in percent; write 'regression>5%'")
        return Condition(text, name, operator, _number(found[3], where, percent=True))
    is_share = metric is not None and name == metric.name and metric.kind == "share"
    limit = _number(found[3], where, percent=is_share)
    return Condition(text, name, operator, _share(limit, where, name) if is_share else limit)


def budget(text: str, metric: Metric | None) -> Budget:
    """Read ``p50_ms=2`` or ``accuracy=0.92``; `metric` is the one in the chart, None where there is none.

    Raises UsageError that says what can be asked.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    where = f"--budget {text!r}"
    if not equals or not value:
        raise UsageError(f"{where}: is no budget; write a name and a value, such as p50_ms=2")
    name = _known(name, ["p50_ms", *([metric.name] if metric else [])], where)
    is_share = metric is not None and name == metric.name and metric.kind == "share"
    limit = _number(value, where, percent=is_share)
    if name == "p50_ms" and limit <= 0:
        raise UsageError(f"{where}: a latency is above zero")
    return Budget(_share(limit, where, name) if is_share else limit, name == "p50_ms")


def lines(budgets: Sequence[Budget], runs: Sequence[Run]) -> tuple[Budget, ...]:
    """The budgets and the runs' own goals; a goal that several runs have with one limit is one line."""
    letters: dict[Budget, list[str]] = {}
    for run in runs:
        for goal in _goals(run):
            letters.setdefault(goal, []).append(run.letter)
    return (*dict.fromkeys(budgets), *(replace(goal, runs=tuple(each)) for goal, each in letters.items()))


def _goals(run: Run) -> Iterator[Budget]:
    """Those that are limits of the p50 or of the metric; goals on other numbers have no place in the chart."""
    report = run.report
    teacher, timing = report.steps[0].engine.score.value, report.steps[-1].timing
    worse = -1 if report.metric.higher_is_better else 1
    for goal in report.goals:
        match goal.goal:
            case "max_p50_ms":
                yield Budget(goal.limit, True, goal.goal)
            case "min_speedup":
                yield Budget(timing.baseline.p50_ms / goal.limit, True, goal.goal)
            case "max_accuracy_drop":
                yield Budget(teacher - goal.limit, False, goal.goal)
            case "max_worsening":
                yield Budget(teacher + worse * goal.limit * abs(teacher), False, goal.goal)
            case _:
                pass


def _known(name: str, names: Collection[str], where: str) -> str:
    by_lower = {each.lower(): each for each in names}
    if name.lower() not in by_lower:
        raise UsageError(f"{where}: there is no number `{name}`; {nearest(name, names)}")
    return by_lower[name.lower()]


def _number(text: str, where: str, *, percent: bool) -> float:
    is_percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (is_percent and not percent):
        example = "such as 5%" if percent else "such as 2 or 1.5e6"
        raise UsageError(f"{where}: `{text}` is no number here; write one, {example}")
    return value / 100 if is_percent else value


def _share(value: float, where: str, name: str) -> float:
    if not 0 <= value <= 1:
        raise UsageError(f"{where}: {name} is a share from 0 to 1; write 0.92 or 92%")
    return value
