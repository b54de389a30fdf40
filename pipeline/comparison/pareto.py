"""Which engines no other one beats in both metric and latency, and which other engines are beaten by which."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from ...export.measurement import Latency, Score, ScoreChange
from ..differences import Speedup, score_change, speedup_across
from .contender import Contender, Ground, hardware


class Point(Protocol):
    """What has a place between the two axes."""

    @property
    def score(self) -> Score:
        """Of the metric that all points share."""
        ...

    @property
    def latency(self) -> Latency:
        """At the batch size that all points share."""
        ...


P = TypeVar("P", bound=Point)


def pareto_front(points: Sequence[P]) -> list[P]:
    """By rising latency: the points that no other one equals or beats in both and beats in one."""
    front: list[P] = []
    for point in sorted(points, key=lambda point: (point.latency.p50_ms, -_goodness(point))):
        better = not front or _goodness(point) > _goodness(front[-1])
        if better or _place(point) == _place(front[-1]):
            front.append(point)
    return front


def _goodness(point: Point) -> float:
    """Higher is better, whatever the metric."""
    return point.score.value if point.score.metric.higher_is_better else -point.score.value


def _place(point: Point) -> tuple[float, float]:
    return point.latency.p50_ms, point.score.value


@dataclass(frozen=True)
class Rival:
    """An engine on the front that is no slower and no worse than another one, and better in one of both."""

    engine: Contender
    speedup: Speedup
    """How many times faster it is."""
    score: ScoreChange
    """How much higher its metric is."""

    @property
    def beyond_noise(self) -> bool:
        """Whether one of both differences is more than chance may make."""
        return self.speedup.verdict == "faster" or self.score.significant


@dataclass(frozen=True)
class Standing:
    """An engine's place among those that it may be compared with in both."""

    engine: Contender
    score: Score
    latency: Latency
    ground: tuple[Ground, tuple[object, ...]]
    """Data and hardware: only engines of one ground are set against each other."""
    rivals: tuple[Rival, ...] = ()
    """That beat it, the fastest first; empty on the front."""
    level: tuple[Contender, ...] = ()
    """Others on the front that differ from one on it in neither beyond noise; empty off the front."""

    @property
    def on_front(self) -> bool:
        """Whether none beats it."""
        return not self.rivals


def standings(engines: Sequence[Contender], batch: int, floor: float) -> tuple[Standing, ...]:
    """Every engine that has a score and a latency at `batch`, by rising latency.

    `floor` is the smallest difference of latency that counts, as a share.
    """
    placed = [
        Standing(engine, engine.score, latency, (engine.ground, hardware(engine.machine)))
        for engine in engines
        if (latency := engine.at(batch)) and engine.score and engine.ground
    ]
    grounds = dict.fromkeys(each.ground for each in placed)
    judged = [each for ground in grounds for each in _judged([one for one in placed if one.ground == ground], floor)]
    return tuple(sorted(judged, key=lambda each: each.latency.p50_ms))


def _judged(members: Sequence[Standing], floor: float) -> list[Standing]:
    front = pareto_front(members)
    return [
        replace(each, level=tuple(one.engine for one in front if one is not each and _level(one, each, floor)))
        if each in front
        else replace(each, rivals=tuple(_rival(one, each, floor) for one in front if _beats(one, each)))
        for each in members
    ]


def _level(one: Standing, other: Standing, floor: float) -> bool:
    rival = _rival(one, other, floor)
    return rival.speedup.verdict == "no significant difference" and not rival.score.significant


def _beats(one: Standing, other: Standing) -> bool:
    faster = one.latency.p50_ms <= other.latency.p50_ms
    return faster and _goodness(one) >= _goodness(other) and _place(one) != _place(other)


def _rival(one: Standing, other: Standing, floor: float) -> Rival:
    return Rival(one.engine, speedup_across(other.latency, one.latency, floor), score_change(other.score, one.score))
