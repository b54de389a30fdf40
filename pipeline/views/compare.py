"""Several runs side by side, and which of their differences are within noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import JsonValue

from ...export.measurement import Comparison, EngineMeasurement, Machine, ScoreChange
from ...export.resampling import NOISE_FLOOR
from ..differences import Speedup, score_change, speedup_across
from ..errors import UsageError
from ..report import Report

MAX_RUNS = 26
"""One capital letter each."""


@dataclass(frozen=True)
class Run:
    """One of the runs that are compared."""

    letter: str
    path: Path
    report: Report

    @property
    def label(self) -> str:
        """Such as ``B digits-wide``."""
        return f"{self.letter} {self.report.name}"

    @property
    def final(self) -> EngineMeasurement:
        """The engine of the last step, for the first target."""
        return self.report.steps[-1].engine


@dataclass(frozen=True)
class AgainstFirst:
    """A run's final engine against that of the first run. A None has its reason beside it."""

    run: Run
    score: ScoreChange | None
    score_reason: str
    speedup: Speedup | None
    speedup_reason: str
    file_ratio: float | None
    """The first run's file size over this one's."""

    @property
    def verdict(self) -> str:
        """On latency, in words."""
        return self.speedup.verdict if self.speedup else self.speedup_reason


@dataclass(frozen=True)
class RunComparison:
    """Runs in the order given; the first one is what the others are compared with."""

    runs: tuple[Run, ...]

    @cached_property
    def same_machine(self) -> bool:
        """Whether all latencies were taken on hardware of one description."""
        first, *others = (hardware(run.report.machine) for run in self.runs)
        return all(other == first for other in others)

    @cached_property
    def same_metric(self) -> bool:
        """Whether all runs are judged by one metric."""
        return all(run.report.metric == self.runs[0].report.metric for run in self.runs)

    @cached_property
    def drift(self) -> float:
        """How far a teacher's p50 moved between its timings in one run at most; 0.02 is two percent.

        One file, one machine, timed anew beside every step's engine: what differs is the machine's state, and a
        difference between sessions as small as that is none.
        """
        return max(_drift(run.report) for run in self.runs)

    @property
    def noise_floor(self) -> float:
        """The smallest difference of latency between sessions that counts."""
        return max(NOISE_FLOOR, self.drift)

    def against_first(self) -> tuple[AgainstFirst, ...]:
        """Each other run against the first."""
        first, *others = self.runs
        return tuple(self._against(first, run) for run in others)

    def _against(self, first: Run, run: Run) -> AgainstFirst:
        before, after = first.final, run.final
        score_reason = _why_not_score(first.report, run.report)
        speedup_reason = _why_not_latency(first, run)
        speedup = None
        if not speedup_reason:
            pair = common_batch(before, after)
            assert pair is not None  # else there is a reason
            speedup = speedup_across(pair[0].candidate, pair[1].candidate, self.noise_floor)
        return AgainstFirst(
            run=run,
            score=None if score_reason else score_change(before.score, after.score),
            score_reason=score_reason,
            speedup=speedup,
            speedup_reason=speedup_reason,
            file_ratio=before.file_bytes / after.file_bytes if after.file_bytes else None,
        )

    def different_settings(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Every setting in which the recipes differ: its path, and its value in each run, ``–`` where it has none."""
        flat = [_recipe_settings(run) for run in self.runs]
        paths = dict.fromkeys(path for settings in flat for path in settings)
        rows = ((path, tuple(settings.get(path, "–") for settings in flat)) for path in paths)
        return tuple((path, values) for path, values in rows if len(set(values)) > 1)

    def machine_differences(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Likewise for the machines: processor, cores, system, and every library's version."""
        flat = [dict(_machine_settings(run.report.machine)) for run in self.runs]
        names = dict.fromkeys(name for facts in flat for name in facts)
        rows = ((name, tuple(facts.get(name, "–") for facts in flat)) for name in names)
        return tuple((name, values) for name, values in rows if len(set(values)) > 1)


def compare(reports: Sequence[tuple[Path, Report]]) -> RunComparison:
    """Set runs beside each other; raises UsageError for fewer than two or too many to tell apart."""
    if not 2 <= len(reports) <= MAX_RUNS:
        raise UsageError(f"compare takes 2 to {MAX_RUNS} runs, got {len(reports)}; name the folders of finished runs")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return RunComparison(tuple(Run(letters[index], path, report) for index, (path, report) in enumerate(reports)))


def hardware(machine: Machine) -> tuple[object, ...]:
    """What must be equal for latencies to be set against each other."""
    return (machine.cpu_model, machine.cpu_flags, machine.cores, machine.threads, machine.gpu)


def common_batch(first: EngineMeasurement, second: EngineMeasurement) -> tuple[Comparison, Comparison] | None:
    """Both engines' timings at the first batch size they share."""
    by_batch = {timing.batch: timing for timing in second.latency}
    return next(((timing, by_batch[timing.batch]) for timing in first.latency if timing.batch in by_batch), None)


def _why_not_score(first: Report, other: Report) -> str:
    if first.metric != other.metric:
        return f"different metrics, {first.metric.name} and {other.metric.name}"
    if first.data != other.data or first.classes != other.classes:
        return "different data"
    if first.steps[-1].engine.score.count != other.steps[-1].engine.score.count:
        return "different number of test samples"
    return ""


def _why_not_latency(first: Run, other: Run) -> str:
    if hardware(first.report.machine) != hardware(other.report.machine):
        return "different machines"
    if first.final.threads != other.final.threads:
        return f"different threads, {first.final.threads} and {other.final.threads}"
    if common_batch(first.final, other.final) is None:
        return "no batch size in common"
    return ""


def _drift(report: Report) -> float:
    p50s = [step.timing.baseline.p50_ms for step in report.steps]
    return max(p50s) / min(p50s) - 1


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
