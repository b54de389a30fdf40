"""Whether an engine is as ``--fail-if`` demands, for continuous integration."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...export.measurement import Latency
from ...export.resampling import NOISE_FLOOR
from .asked import REGRESSION, Condition, Judgement
from .compare import Compared, common_batch
from .contender import Contender


class _Found(NamedTuple):
    """A number and what is to be said of it."""

    value: float | None
    words: str
    excused: bool = False
    """Whether chance may have made it."""


def judged(
    conditions: Sequence[Condition], compared: Compared, engines: Sequence[Contender], baseline: Sequence[Contender]
) -> tuple[Judgement, ...]:
    """Each condition against each engine; `baseline` holds what a regression is told from, and may be empty."""
    return tuple(
        _judgement(condition, engine, _found(condition, compared, engine, baseline))
        for engine in engines
        for condition in conditions
    )


def _judgement(condition: Condition, engine: Contender, found: _Found) -> Judgement:
    # What was not measured cannot be shown to be right.
    failed = found.value is None or (condition.holds(found.value) and not found.excused)
    return Judgement(
        condition=condition.text,
        engine=engine.mark,
        value=found.value,
        failed=failed,
        sentence=f"{condition.text} {'FAILED' if failed else 'passed'}: {engine.label}, {engine.target}: {found.words}",
    )


def _found(condition: Condition, compared: Compared, engine: Contender, baseline: Sequence[Contender]) -> _Found:
    if condition.name == REGRESSION:
        return _regression(condition, compared, engine, baseline)
    first = engine.latency[0]
    at = f"at batch {first.batch}"
    match condition.name:
        case "p50_ms":
            interval = first.p50_interval
            return _Found(
                first.p50_ms, f"p50 is {first.p50_ms:.4g} ms {at} ({interval.low:.4g} to {interval.high:.4g})"
            )
        case "p90_ms":
            return _percentile("p90", first.p90_ms, first)
        case "p99_ms":
            return _percentile("p99", first.p99_ms, first)
        case "throughput":
            return _Found(first.throughput, f"throughput is {first.throughput:,.1f} samples/s {at}")
        case "file_bytes":
            return _count(engine.file_bytes, "its file has", "bytes", "the size of its file is not recorded")
        case "peak_memory_bytes":
            return _count(engine.peak_memory_bytes, "its peak memory is", "bytes", "its peak memory was not measured")
        case "parameters":
            return _count(engine.parameters, "it has", "parameters", "a profile counts no parameters")
        case "macs":
            return _count(engine.macs, "it takes", "multiply-accumulates a sample", "a profile counts no operations")
        case "speedup":
            return _speedup(engine)
        case name:  # the metric
            assert engine.score is not None  # a condition on a metric is read for engines that have it
            low, high = engine.score.interval.low, engine.score.interval.high
            return _Found(engine.score.value, f"{name} is {engine.score.value:.4g} ({low:.4g} to {high:.4g})")


def _percentile(name: str, value: float | None, latency: Latency) -> _Found:
    if value is None:
        return _Found(None, f"{name} was not measured: {latency.samples:,} samples are too few")
    return _Found(value, f"{name} is {value:.4g} ms at batch {latency.batch}")


def _count(value: int | None, before: str, unit: str, missing: str) -> _Found:
    return _Found(None, missing) if value is None else _Found(value, f"{before} {value:,} {unit}")


def _speedup(engine: Contender) -> _Found:
    if engine.speedup is None:
        return _Found(None, "the speedup was not measured: a profile has no teacher")
    timing = engine.speedup
    interval = f"{timing.interval.low:.2f} to {timing.interval.high:.2f}"
    return _Found(timing.ratio, f"{timing.ratio:.2f}x its teacher's speed at batch {timing.batch} ({interval})")


def _regression(condition: Condition, compared: Compared, engine: Contender, baseline: Sequence[Contender]) -> _Found:
    """The share by which its p50 is above the baseline's; excused where that is within noise.

    Where the machine drifted by more than the limit while it measured, what is above the limit cannot be told from
    that drift, and is not excused by it.
    """
    base = _counterpart(engine, baseline)
    if base is None:
        return _Found(None, "cannot be judged: the baseline has no engine of that name and target")
    against, pair = compared.against(base, engine), common_batch(base, engine)
    if against.speedup is None or pair is None:
        return _Found(None, f"cannot be judged against {base.label}: {against.speedup_reason}")
    before, after = pair
    change = after.p50_ms / before.p50_ms - 1
    noise = against.speedup.verdict == "no significant difference"
    told = f"p50 went from {before.p50_ms:.4g} to {after.p50_ms:.4g} ms at batch {before.batch} against {base.label}"
    sure = "within noise" if noise else "beyond noise"
    if noise and condition.holds(change) and compared.drift > max(condition.limit, NOISE_FLOOR):
        drift = f"cannot be judged: the machine drifted by {100 * compared.drift:.1f} % while it measured"
        return _Found(None, f"{told} ({100 * change:+.1f} %), which {drift}")
    return _Found(change, f"{told} ({100 * change:+.1f} %, {sure})", excused=noise)


def _counterpart(engine: Contender, baseline: Sequence[Contender]) -> Contender | None:
    """What a profiled file is told from: the one called and run like it. A run has one main engine."""
    if len(baseline) == 1:
        return baseline[0]
    alike = [each for each in baseline if (each.target, each.threads) == (engine.target, engine.threads)]
    found = [each for each in alike if each.name == engine.name]
    # Files of one name that lie in different folders are called by their paths, which another machine need not have.
    found = found or [each for each in alike if Path(each.file).name == Path(engine.file).name]
    return found[0] if len(found) == 1 else None
