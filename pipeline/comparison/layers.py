"""Which layers two engines spend different times in, by the runtimes' own profiles.

A profile slows small operators down, and depends on how busy the machine is: the sums of ten profiles of one file on a
busy machine differed by up to 2.5 times. A layer's share of its profile is far steadier, so times here are shares of
the engine's p50, which was timed without a profile. Of 44,064 pairs of one layer in two such profiles of one file (six
networks of 0.3 to 0.9 ms, on a busy machine), 4 to 8 % of a network's shares differed by more than 1.2 times, but only
0.002 % by that and by more than a hundredth of the engine's time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...export.diagnosis import SLOWER
from ...export.measurement import Latency, NotMeasured, OperatorTime
from ..bench import Verdict
from .contender import Contender, hardware

LEAST_SHARE = 0.01
"""Of the slower engine: a smaller difference of a layer's time is none."""

OWN = ""
"""The layer of operators that the runtime put in itself."""


@dataclass(frozen=True)
class LayerDifference:
    """One layer in both engines."""

    layer: str
    before_ms: float
    after_ms: float
    before_operators: tuple[str, ...]
    after_operators: tuple[str, ...]
    verdict: Verdict
    """On the second engine."""


@dataclass(frozen=True)
class LayerComparison:
    """The layers of an engine beside those of the first engine."""

    first: Contender
    other: Contender
    reason: str = ""
    """Why there is nothing to compare; empty where there is."""
    batch: int = 0
    rows: tuple[LayerDifference, ...] = ()
    """The largest difference first."""
    only_first_ms: float = 0.0
    """Layers that the other engine does not have."""
    only_other_ms: float = 0.0

    @property
    def beyond_noise(self) -> tuple[LayerDifference, ...]:
        """The layers that differ by more than chance may make."""
        return tuple(row for row in self.rows if row.verdict != "no significant difference")


def compared_layers(first: Contender, other: Contender, floor: float) -> LayerComparison:
    """Set the layers of two engines side by side; `floor` is the smallest difference of latency that counts."""
    reason = _why_not(first, other)
    if reason:
        return LayerComparison(first, other, reason)
    assert not isinstance(first.operators, NotMeasured)  # else there is a reason
    assert not isinstance(other.operators, NotMeasured)
    before, after = (
        _Layers.of(first, first.operators, other.operators),
        _Layers.of(other, other.operators, first.operators),
    )
    common = [layer for layer in before.ms if layer in after.ms]
    if not any(common):
        return LayerComparison(first, other, "no layer of the same path")
    least = LEAST_SHARE * max(first.latency[0].p50_ms, other.latency[0].p50_ms)
    rows = [_difference(layer, before, after, SLOWER * (1 + floor), least) for layer in common]
    rows.sort(key=lambda row: -abs(row.after_ms - row.before_ms))
    return LayerComparison(
        first,
        other,
        batch=first.latency[0].batch,
        rows=tuple(rows),
        only_first_ms=before.outside(common),
        only_other_ms=after.outside(common),
    )


def _why_not(first: Contender, other: Contender) -> str:
    if hardware(first.machine) != hardware(other.machine):
        return "different machines"
    if first.threads != other.threads:
        return f"different threads, {first.threads} and {other.threads}"
    for engine in (first, other):
        if isinstance(engine.operators, NotMeasured):
            return f"the operators of {engine.mark} were not recorded: {engine.operators.reason}"
    if first.latency[0].batch != other.latency[0].batch:
        return f"profiled at different batch sizes, {first.latency[0].batch} and {other.latency[0].batch}"
    return ""


@dataclass(frozen=True)
class _Layers:
    """An engine's time by layer, in milliseconds of its p50, and the operators that it is made of."""

    ms: dict[str, float]
    operators: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, engine: Contender, times: Sequence[OperatorTime], others: Sequence[OperatorTime]) -> "_Layers":
        latency: Latency = engine.latency[0]
        scale = latency.p50_ms / (sum(each.ms for each in times) or 1.0)
        there = {each.layer for each in others}
        ms: dict[str, float] = {}
        operators: dict[str, dict[str, None]] = {}
        for each in times:
            layer = _whole(each.layer, there)
            ms[layer] = ms.get(layer, 0.0) + scale * each.ms
            operators.setdefault(layer, {})[each.operator] = None
        return cls(ms, {layer: tuple(each) for layer, each in operators.items()})

    def outside(self, common: Sequence[str]) -> float:
        return sum(ms for layer, ms in self.ms.items() if layer not in common)


def _whole(layer: str, others: set[str]) -> str:
    """The layer that this one is a factor of, where the other engine has it whole: ``conv1`` for ``conv1.0``."""
    path, _, last = layer.rpartition(".")
    return path if last.isdigit() and path in others and layer not in others else layer


def _difference(layer: str, before: _Layers, after: _Layers, ratio: float, least: float) -> LayerDifference:
    was, is_now = before.ms[layer], after.ms[layer]
    verdict: Verdict = "no significant difference"
    if abs(is_now - was) > least:
        if was > ratio * is_now:
            verdict = "faster"
        elif is_now > ratio * was:
            verdict = "slower"
    return LayerDifference(layer, was, is_now, before.operators[layer], after.operators[layer], verdict)
