"""Facts about telling differences from noise."""

import math

import numpy as np
import pytest

from potstill.export.measurement import Accuracy, Interval, Latency
from potstill.pipeline.differences import score_change, speedup_across


def latency(p50_ms: float, spread: float) -> Latency:
    return Latency(
        batch=1,
        samples=1000,
        p50_ms=p50_ms,
        p50_interval=Interval(low=p50_ms * (1 - spread), high=p50_ms * (1 + spread)),
        p90_ms=p50_ms,
        p99_ms=p50_ms,
        mean_ms=p50_ms,
        throughput=1000 / p50_ms,
        outliers=0,
    )


class TestScoreChange:
    def test_newcombes_published_examples_come_out(self) -> None:
        # Statistics in Medicine 17 (1998), table II, method 10: 56/70 - 48/80, 9/10 - 3/10 and 10/10 - 0/10.
        published = {
            (56, 70, 48, 80): (0.0524, 0.3339),
            (9, 10, 3, 10): (0.1705, 0.8090),
            (10, 10, 0, 10): (0.6075, 1.0),
        }
        for (first, of_first, second, of_second), (low, high) in published.items():
            change = score_change(Accuracy(correct=second, count=of_second), Accuracy(correct=first, count=of_first))
            assert change.interval.low == pytest.approx(low, abs=5e-5)
            assert change.interval.high == pytest.approx(high, abs=5e-5)

    def test_equal_engines_differ_significantly_in_about_five_percent_of_experiments(self) -> None:
        draws = np.random.default_rng(0).binomial(359, 0.97, size=(2000, 2))
        alarms = sum(
            score_change(Accuracy(correct=int(a), count=359), Accuracy(correct=int(b), count=359)).significant
            for a, b in draws
        )
        assert 0.035 * len(draws) <= alarms <= 0.065 * len(draws)

    def test_a_fall_from_99_to_93_percent_of_359_samples_is_no_noise(self) -> None:
        change = score_change(Accuracy(correct=355, count=359), Accuracy(correct=334, count=359))
        assert change.significant
        assert change.value == pytest.approx(-21 / 359)


class TestSpeedupAcross:
    def test_the_interval_of_equally_sure_medians_is_wider_by_the_root_of_two(self) -> None:
        speedup = speedup_across(latency(2.0, 0.01), latency(1.0, 0.01), 0.0)
        assert speedup.ratio == 2.0
        assert math.log(speedup.interval.high / 2) == pytest.approx(math.sqrt(2) * 0.01, rel=0.02)
        assert speedup.verdict == "faster"

    def test_unsure_medians_are_no_difference_however_far_apart(self) -> None:
        assert speedup_across(latency(1.3, 0.3), latency(1.0, 0.3), 0.0).verdict == "no significant difference"

    def test_sure_medians_within_the_floor_are_no_difference(self) -> None:
        assert speedup_across(latency(1.08, 0.001), latency(1.0, 0.001), 0.1).verdict == "no significant difference"
        assert speedup_across(latency(1.08, 0.001), latency(1.0, 0.001), 0.05).verdict == "faster"
        assert speedup_across(latency(1.0, 0.001), latency(1.08, 0.001), 0.05).verdict == "slower"
