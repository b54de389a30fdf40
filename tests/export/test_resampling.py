"""Facts about intervals and verdicts, on samples whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from potstill.export.measurement import Comparison, Interval
from potstill.export.resampling import compared, verdict_of

Blocks = list[NDArray[np.float64]]


def runs(draws: np.random.Generator, *, median_ms: float = 1.0, blocks: int = 40, count: int = 25) -> Blocks:
    """Latencies as they look: a lognormal spread of 5 %, and blocks that differ by 2 % from each other."""
    return [median_ms * 1e-3 * draws.lognormal(0, 0.02) * draws.lognormal(0, 0.05, size=count) for _ in range(blocks)]


def comparisons(candidate_ms: float) -> list[Comparison]:
    """Twenty independent comparisons with a baseline of 1 ms."""
    return [
        compared(1, runs(draws), runs(draws, median_ms=candidate_ms)) for draws in map(np.random.default_rng, range(20))
    ]


def test_an_engine_does_not_differ_from_itself() -> None:
    verdicts = [comparison.verdict for comparison in comparisons(1.0)]
    assert verdicts.count("no significant difference") >= 19


@pytest.mark.parametrize(("candidate_ms", "verdict"), [(0.9, "faster"), (1.1, "slower")])
def test_a_difference_of_ten_percent_is_found(candidate_ms: float, verdict: str) -> None:
    assert {comparison.verdict for comparison in comparisons(candidate_ms)} == {verdict}


def test_the_intervals_of_the_ratio_hold_the_true_ratio_about_as_often_as_they_say() -> None:
    covered = [comparison.interval.low <= 2 <= comparison.interval.high for comparison in comparisons(0.5)]
    assert sum(covered) >= 17


def test_what_slows_the_whole_machine_cancels_in_the_ratio() -> None:
    draws = np.random.default_rng(1)
    slowdown = np.repeat([1.0, 3.0], 20)
    baseline, candidate = runs(draws, median_ms=2.0), runs(draws)
    slowed = compared(
        1,
        [block * factor for block, factor in zip(baseline, slowdown, strict=True)],
        [block * factor for block, factor in zip(candidate, slowdown, strict=True)],
    )
    assert slowed.interval.low <= 2 <= slowed.interval.high
    assert slowed.candidate.p50_interval.high / slowed.candidate.p50_interval.low > 2
    assert slowed.interval.high / slowed.interval.low < 1.3


def test_a_99th_percentile_needs_a_thousand_samples() -> None:
    draws = np.random.default_rng(2)
    assert compared(1, runs(draws), runs(draws, count=24)).candidate.p99_ms is None
    enough = compared(1, runs(draws), runs(draws)).candidate
    assert enough.samples == 1000
    assert enough.p99_ms is not None
    assert enough.p50_ms < enough.p90_ms < enough.p99_ms


def test_outliers_are_counted_and_not_dropped() -> None:
    draws = np.random.default_rng(3)
    blocks = runs(draws)
    calm = compared(4, blocks, blocks).candidate
    blocks[7][3] = blocks[30][0] = 0.1
    disturbed = compared(4, blocks, blocks).candidate
    assert (calm.outliers, disturbed.outliers) == (0, 2)
    assert disturbed.samples == calm.samples
    assert disturbed.mean_ms == pytest.approx(calm.mean_ms + 2 * 99 / 1000, rel=0.01)
    assert disturbed.throughput == pytest.approx(4e3 / disturbed.mean_ms)


def test_the_same_samples_give_the_same_interval() -> None:
    blocks = runs(np.random.default_rng(4))
    assert compared(1, blocks, blocks[::-1]) == compared(1, blocks, blocks[::-1])


def test_a_median_interval_is_narrower_with_more_blocks() -> None:
    few = compared(1, runs(np.random.default_rng(5), blocks=10), runs(np.random.default_rng(6), blocks=10))
    many = compared(1, runs(np.random.default_rng(5), blocks=160), runs(np.random.default_rng(6), blocks=160))
    assert width(many.candidate.p50_interval) < 0.6 * width(few.candidate.p50_interval)


def test_a_sure_but_tiny_difference_is_no_verdict() -> None:
    assert verdict_of(1.01, Interval(low=1.005, high=1.015)) == "no significant difference"
    assert verdict_of(1.2, Interval(low=0.99, high=1.4)) == "no significant difference"
    assert verdict_of(1.2, Interval(low=1.1, high=1.3)) == "faster"
    assert verdict_of(0.8, Interval(low=0.7, high=0.9)) == "slower"


def width(interval: Interval) -> float:
    return interval.high - interval.low
