"""Runs and profiles side by side, and which of their differences are within noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import JsonValue

from ...export.measurement import Latency, Machine, ScoreChange
from ...export.resampling import NOISE_FLOOR
from ..differences import Speedup, score_change, speedup_across
from ..errors import UsageError
from ..report import Report
from .asked import Budget, Judgement
from .contender import NO_SCORE, Contender, Profiled, Run, Source, hardware
from .layers import LayerComparison, compared_layers
from .pareto import Standing, standings
from .profile_file import ProfileFile

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""One for each run or profile."""


@dataclass(frozen=True)
class AgainstFirst:
    """An engine against the first one. A None has its reason beside it."""

    engine: Contender
    score: ScoreChange | None
    score_reason: str
    speedup: Speedup | None
    speedup_reason: str
    file_ratio: float | None
    """The first engine's file size over this one's; None as well where one is not known."""

    @property
    def verdict(self) -> str:
        """On latency, in words."""
        return self.speedup.verdict if self.speedup else self.speedup_reason


@dataclass(frozen=True)
class Compared:
    """Runs and profiles in the order given; the first one's engine is what the others are compared with."""

    sources: tuple[Source, ...]
    budgets: tuple[Budget, ...] = ()
    """Lines in the chart of metric against latency."""
    judgements: tuple[Judgement, ...] = ()
    """What was demanded of the engines, and whether they are so."""

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Without the profiles."""
        return tuple(each for each in self.sources if isinstance(each, Run))

    @cached_property
    def engines(self) -> tuple[Contender, ...]:
        """Of every step, target, precision and profiled file."""
        return tuple(engine for source in self.sources for engine in source.engines)

    @cached_property
    def main(self) -> tuple[Contender, ...]:
        """A run's final engine for its first target, and every profiled file."""
        return tuple(engine for source in self.sources for engine in source.main)

    @cached_property
    def machines(self) -> tuple[tuple[object, ...], ...]:
        """The different hardware that measured all this, in order."""
        return tuple(dict.fromkeys(hardware(source.machine) for source in self.sources))

    @property
    def same_machine(self) -> bool:
        """Whether all latencies were taken on hardware of one description."""
        return len(self.machines) == 1

    @cached_property
    def same_metric(self) -> bool:
        """Whether all runs are judged by one metric."""
        return len({run.report.metric.model_dump_json() for run in self.runs}) <= 1

    @cached_property
    def drift(self) -> float:
        """How far a teacher's p50 moved between its timings in one run at most; 0.02 is two percent.

        One file, one machine, timed anew beside every step's engine: what differs is the machine's state, and a
        difference between sessions as small as that is none.
        """
        return max((_drift(run.report) for run in self.runs), default=0.0)

    @property
    def noise_floor(self) -> float:
        """The smallest difference of latency between sessions that counts."""
        return max(NOISE_FLOOR, self.drift)

    @property
    def batch(self) -> int:
        """At which engines are set against each other: the first engine's first batch size."""
        return self.main[0].latency[0].batch

    def machine_number(self, machine: Machine) -> int:
        """From 1, by the order in which machines come."""
        return self.machines.index(hardware(machine)) + 1

    @cached_property
    def standings(self) -> tuple[Standing, ...]:
        """Every engine's place between metric and latency; empty where the runs have different metrics."""
        return standings(self.engines, self.batch, self.noise_floor) if self.same_metric else ()

    @cached_property
    def layers(self) -> tuple[LayerComparison, ...]:
        """Each other main engine's layers beside the first one's."""
        first, *others = self.main
        return tuple(compared_layers(first, other, self.noise_floor) for other in others)

    @cached_property
    def against_first(self) -> tuple[AgainstFirst, ...]:
        """Each other main engine against the first."""
        first, *others = self.main
        return tuple(self.against(first, other) for other in others)

    def against(self, first: Contender, other: Contender) -> AgainstFirst:
        """One engine against another one."""
        score_reason, speedup_reason = _why_not_score(first, other), why_not_latency(first, other)
        score, speedup = None, None
        if not score_reason:
            assert first.score is not None  # else there is a reason
            assert other.score is not None
            score = score_change(first.score, other.score)
        if not speedup_reason:
            speedup = self._speedup(first, other)
        ratio = first.file_bytes / other.file_bytes if first.file_bytes and other.file_bytes else None
        return AgainstFirst(other, score, score_reason, speedup, speedup_reason, ratio)

    def _speedup(self, first: Contender, other: Contender) -> Speedup:
        pair = common_batch(first, other)
        assert pair is not None  # the caller asked
        turns = other.beside if other.beside_mark == first.mark else ()
        direct = next((each for each in turns if each.batch == pair[0].batch), None)
        if direct is not None:
            return Speedup(direct.ratio, direct.interval, direct.verdict)
        return speedup_across(*pair, self.noise_floor)

    def different_settings(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Every setting in which the recipes differ: its path, and its value in each run, ``–`` where it has none."""
        flat = [_recipe_settings(run) for run in self.runs]
        return _differing(flat)

    def machine_differences(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Likewise for the machines: processor, cores, system, and every library's version."""
        return _differing([dict(_machine_settings(source.machine)) for source in self.sources])


def compare(sources: Sequence[tuple[Path, Report | ProfileFile]], *, least: int = 2) -> Compared:
    """Set runs and profiles beside each other; raises UsageError for fewer than `least`, or too many to tell apart."""
    if not least <= len(sources) <= len(LETTERS):
        raise UsageError(
            f"compare takes {least} to {len(LETTERS)} runs or profiles, got {len(sources)}; name the folders of "
            "finished runs, or files that `potstill profile --json` wrote"
        )
    return Compared(
        tuple(
            Run(letter, path, each) if isinstance(each, Report) else Profiled(letter, path, each)
            for letter, (path, each) in zip(LETTERS, sources, strict=False)
        )
    )


def load(path: Path) -> Report | ProfileFile:
    """What a folder, a report or a profile holds; UsageError when it is none of them."""
    return ProfileFile.load(path) or Report.load(path)


def common_batch(first: Contender, second: Contender) -> tuple[Latency, Latency] | None:
    """Both engines' latencies at the first batch size they share."""
    by_batch = {latency.batch: latency for latency in second.latency}
    return next(((latency, by_batch[latency.batch]) for latency in first.latency if latency.batch in by_batch), None)


def why_not_latency(first: Contender, other: Contender) -> str:
    """Why the latencies of two engines must not be set against each other; empty where they may."""
    if hardware(first.machine) != hardware(other.machine):
        return "different machines"
    if first.threads != other.threads:
        return f"different threads, {first.threads} and {other.threads}"
    if common_batch(first, other) is None:
        return "no batch size in common"
    return ""


def _why_not_score(first: Contender, other: Contender) -> str:
    before, after = first.ground, other.ground
    if before is None or after is None:
        return NO_SCORE
    if before.metric != after.metric:
        return f"different metrics, {before.metric.name} and {after.metric.name}"
    if (before.data, before.classes) != (after.data, after.classes):
        return "different data"
    return "" if before.count == after.count else "different number of test samples"


def _drift(report: Report) -> float:
    p50s = [step.timing.baseline.p50_ms for step in report.steps]
    return max(p50s) / min(p50s) - 1


def _differing(flat: Sequence[dict[str, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = dict.fromkeys(name for facts in flat for name in facts)
    rows = ((name, tuple(facts.get(name, "–") for facts in flat)) for name in names)
    return tuple((name, values) for name, values in rows if len(set(values)) > 1)


def _recipe_settings(run: Run) -> dict[str, str]:
    try:
        return dict(_settings(yaml.safe_load(run.report.recipe)))
    except yaml.YAMLError as error:
        raise UsageError(f"{run.path}: the recipe in its report is not YAML ({error}); run it again") from error


def _settings(value: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a recipe; stages go by their names, so that an added one does not shift all others."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _settings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _settings(item, f"{path}.{_item_name(item, index)}")
    else:
        yield path, str(value)


def _item_name(item: JsonValue, index: int) -> str:
    if isinstance(item, dict):
        for key in ("name", "stage"):
            name = item.get(key)
            if isinstance(name, str):
                return name
    return str(index)


def _machine_settings(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "processor", machine.cpu_model
    yield "instruction sets", ", ".join(machine.cpu_flags)
    yield "cores", str(machine.cores)
    yield "usable threads", str(machine.threads)
    yield "GPU", machine.gpu or "none"
    yield "system", machine.system
    yield "Python", machine.python
    yield from machine.libraries.items()
