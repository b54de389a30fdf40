"""Facts about intervals and verdicts, on samples whose truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from potstill.export.measurement import Comparison, Interval
from potstill.export.resampling import compared, half_width, latency_of, percentile_intervals_ms, ranked, verdict_of

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


def test_a_turn_that_disturbed_only_one_engine_is_one_turn_among_many() -> None:
    draws = np.random.default_rng(7)
    baseline, candidate = runs(draws, median_ms=1.05), runs(draws)
    for turn in range(0, 15):
        candidate[turn] = candidate[turn] * 2
    disturbed = compared(1, baseline, candidate)
    # The median of all of the candidate's runs is far off; that of the turns' ratios is not.
    assert disturbed.baseline.p50_ms / disturbed.candidate.p50_ms < 1.0
    assert disturbed.ratio > 1.02
    assert disturbed.turns == 40


def test_the_comparison_the_other_way_round_is_the_reciprocal() -> None:
    draws = np.random.default_rng(8)
    one, other = runs(draws, median_ms=1.3), runs(draws)
    there, back = compared(1, one, other), compared(1, other, one)
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.interval.low == pytest.approx(1 / back.interval.high)


def test_the_width_that_ends_the_timing_is_that_of_the_ratio() -> None:
    draws = np.random.default_rng(9)
    one, other = runs(draws), runs(draws)
    interval = compared(1, one, other).interval
    assert half_width(one, other) == pytest.approx(np.log(interval.high / interval.low) / 2)
    assert half_width(runs(draws, blocks=320), runs(draws, blocks=320)) < 0.6 * half_width(one, other)


def test_the_interval_of_the_ratio_needs_no_assumption_on_how_turns_are_spread() -> None:
    draws = np.random.default_rng(11)
    covered = 0
    for _ in range(60):
        # Turns as a busy machine makes them: half of the time one engine is disturbed by up to ten times.
        factors = [10 ** (draws.random(24) * (draws.random(24) < 0.5)) for _ in range(2)]
        one, other = ([np.full(2, 0.001 * factor) for factor in each] for each in factors)
        interval = compared(1, one, other).interval
        covered += interval.low <= 1 <= interval.high
    assert covered >= 54  # 97.7 % by the binomial distribution


def test_a_percentile_is_given_where_ten_samples_lie_beyond_it() -> None:
    draws = np.random.default_rng(2)
    few = latency_of(1, runs(draws, blocks=9, count=11))
    assert (few.p90_ms, few.p90_interval, few.p99_ms) == (None, None, None)
    some = latency_of(1, runs(draws, count=24))
    assert some.p90_ms is not None
    assert (some.p99_ms, some.p99_interval) == (None, None)
    enough = latency_of(1, runs(draws))
    assert enough.samples == 1000
    assert enough.p99_ms is not None
    assert some.p50_ms < some.p90_ms < enough.p99_ms
    assert enough.p99_interval is not None
    assert enough.p99_interval.low <= enough.p99_ms <= enough.p99_interval.high


def bursts(draws: np.random.Generator, blocks: int) -> Blocks:
    """As `runs`, and in some blocks five runs that follow each other take half as long again."""
    found = runs(draws, blocks=blocks)
    for block in found:
        if draws.random() < 0.15:
            start = draws.integers(20)
            block[start : start + 5] *= 1.5
    return found


def test_percentile_intervals_hold_the_true_percentile_about_as_often_as_they_say() -> None:
    truth = np.quantile(np.concatenate(bursts(np.random.default_rng(99), 8000)), (0.5, 0.9, 0.99)) * 1e3
    trials = 60
    covered = np.zeros(3)
    for seed in range(trials):
        intervals = percentile_intervals_ms(bursts(np.random.default_rng(seed), 40))
        covered += [each.low <= value <= each.high for each, value in zip(intervals, truth, strict=True)]
    # Of 60 intervals that hold it with 92 % each, fewer than 50 do so once in a hundred cases.
    assert (covered >= 50).all()


def test_engines_are_ranked_by_their_medians_and_compared_with_the_fastest() -> None:
    draws = np.random.default_rng(10)
    found = ranked(4, {"slow": runs(draws, median_ms=3.0), "fast": runs(draws), "middle": runs(draws, median_ms=2.0)})
    assert [each.target for each in found] == ["fast", "middle", "slow"]
    assert [each.comparison.verdict for each in found] == ["no significant difference", "slower", "slower"]
    assert found[0].comparison.ratio == 1
    assert found[2].comparison.ratio == pytest.approx(1 / 3, rel=0.03)
    assert {each.comparison.baseline.p50_ms for each in found} == {found[0].comparison.candidate.p50_ms}


def test_behind_the_fastest_engines_stand_by_their_ratio_to_it() -> None:
    def turns(*lengths: tuple[int, float]) -> Blocks:
        return [np.full(25, ms * 1e-3) for count, ms in lengths for _ in range(count)]

    # The machine was slow in the last 19 turns; `steady` was interrupted in 11 others.
    fast = turns((21, 1.0), (19, 10.0))
    steady, slow = turns((10, 1.1), (11, 4.0), (19, 11.0)), turns((21, 3.0), (19, 30.0))
    found = ranked(1, {"slow": slow, "steady": steady, "fast": fast})
    assert [each.target for each in found] == ["fast", "steady", "slow"]
    assert [each.comparison.candidate.p50_ms for each in found] == pytest.approx([1.0, 4.0, 3.0])


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
