"""Which differences between two engines are there, and which may be chance.

Both intervals are put together from the two engines' own 95 % intervals by the square-and-add rule: Newcombe's hybrid
score method for accuracies (Statistics in Medicine 17, 1998, method 10), and its generalisation by Zou and Donner
(Statistics in Medicine 27, 2008) for other metrics and on the logarithms of latencies. All take the two measurements
for independent. Two engines that saw the same test samples are not: their difference varies less, so a verdict errs
towards "within noise". Within a run, metrics other than the accuracy are compared sample by sample instead.
"""

import math
from dataclasses import dataclass

from ..export.measurement import Comparison, Interval, Latency, Score, ScoreChange, Verdict
from ..export.resampling import NOISE_FLOOR


@dataclass(frozen=True)
class Speedup:
    """How many times faster the second engine is: the first one's p50 over the second's."""

    ratio: float
    interval: Interval
    verdict: Verdict


def score_change(before: Score, after: Score) -> ScoreChange:
    """After minus before, both of one metric, with its interval by square-and-add."""
    assert before.metric == after.metric
    interval = _difference_interval(after.value, after.interval, before.value, before.interval)
    return ScoreChange(metric=after.metric, value=after.value - before.value, interval=interval)


def speedup_between(before: Comparison, after: Comparison) -> Speedup:
    """From one step of a run to another: both were timed beside the same baseline, so the machine's drift cancels."""
    return _quotient((after.ratio, after.interval), (before.ratio, before.interval), NOISE_FLOOR)


def speedup_across(before: Latency, after: Latency, floor: float) -> Speedup:
    """Between engines timed in different sessions; ratios within `1 + floor` of each other are no difference."""
    return _quotient((before.p50_ms, before.p50_interval), (after.p50_ms, after.p50_interval), max(floor, NOISE_FLOOR))


def _quotient(top: tuple[float, Interval], bottom: tuple[float, Interval], floor: float) -> Speedup:
    logs = _difference_interval(math.log(top[0]), _log(top[1]), math.log(bottom[0]), _log(bottom[1]))
    ratio, interval = top[0] / bottom[0], Interval(low=math.exp(logs.low), high=math.exp(logs.high))
    verdict: Verdict = "no significant difference"
    if ratio > 1 + floor and interval.low > 1:
        verdict = "faster"
    elif ratio < 1 / (1 + floor) and interval.high < 1:
        verdict = "slower"
    return Speedup(ratio, interval, verdict)


def _log(interval: Interval) -> Interval:
    return Interval(low=math.log(interval.low), high=math.log(interval.high))


def _difference_interval(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """Of first minus second, by square-and-add."""
    difference = first - second
    return Interval(
        low=difference - math.hypot(first - of_first.low, of_second.high - second),
        high=difference + math.hypot(of_first.high - first, second - of_second.low),
    )
