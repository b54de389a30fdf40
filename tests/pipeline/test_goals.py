"""Facts about judging a final engine."""

import pytest

from potstill.export.measurement import (
    Accuracy,
    Comparison,
    EngineMeasurement,
    Interval,
    Latency,
    MeanScore,
    Parity,
)
from potstill.pipeline.goals import judged
from potstill.pipeline.metric import RMSE, Metric
from potstill.pipeline.recipe import Goals


def engine(correct: int, p50_ms: float, p99_ms: float | None, size: int = 1000) -> EngineMeasurement:
    def latency(p50: float) -> Latency:
        return Latency(
            batch=1,
            samples=1000 if p99_ms else 500,
            p50_ms=p50,
            p50_interval=Interval(low=p50, high=p50),
            p90_ms=p50,
            p99_ms=p99_ms,
            mean_ms=p50,
            throughput=1000 / p50,
            outliers=0,
        )

    comparison = Comparison(
        batch=1,
        ratio=4.0 / p50_ms,
        interval=Interval(low=4.0 / p50_ms, high=4.0 / p50_ms),
        verdict="faster",
        baseline=latency(4.0),
        candidate=latency(p50_ms),
    )
    return EngineMeasurement(
        target="onnxruntime cpu int8",
        runtime="onnxruntime",
        device="cpu",
        precision="int8",
        threads=1,
        file="model.onnx",
        file_bytes=size,
        score=Accuracy(correct=correct, count=1000),
        latency=(comparison,),
        peak_memory_bytes=None,
        parity=Parity(
            reference="float model",
            samples=8,
            max_absolute=0,
            max_relative=0,
            mean_relative=0,
            agreement=1,
            passed=True,
            limit="",
        ),
        audit=None,
    )


TEACHER = engine(990, 4.0, 5.0)


class TestJudged:
    def test_no_goals_give_no_results(self) -> None:
        assert judged(Goals(), TEACHER, engine(980, 1.0, 1.2)) == ()

    def test_a_drop_of_exactly_the_limit_is_met(self) -> None:
        (result,) = judged(Goals(max_accuracy_drop=0.01), TEACHER, engine(980, 1.0, 1.2))
        assert result.met

    def test_an_accuracy_that_stayed_neither_rose_nor_fell(self) -> None:
        (result,) = judged(Goals(max_accuracy_drop=0.01), TEACHER, engine(990, 1.0, 1.2))
        assert result.met
        assert "accuracy stayed as it was" in result.sentence

    def test_each_goal_is_judged_on_the_engines_numbers(self) -> None:
        goals = Goals(max_accuracy_drop=0.005, min_speedup=5, max_p50_ms=0.5, max_p99_ms=1.5, max_file_bytes=2000)
        results = {result.goal: result for result in judged(goals, TEACHER, engine(980, 1.0, 1.2))}
        assert {goal: result.met for goal, result in results.items()} == {
            "max_accuracy_drop": False,
            "min_speedup": False,
            "max_p50_ms": False,
            "max_p99_ms": True,
            "max_file_bytes": True,
        }
        assert "1.00 points" in results["max_accuracy_drop"].sentence
        assert "4.00x" in results["min_speedup"].sentence

    def test_a_percentile_that_was_not_measured_misses_its_goal_and_says_so(self) -> None:
        (result,) = judged(Goals(max_p99_ms=100), TEACHER, engine(980, 1.0, None))
        assert not result.met
        assert result.value is None
        assert "not measured" in result.sentence


class TestWorsening:
    def test_of_an_error_is_its_rise_and_of_a_gain_its_fall(self) -> None:
        for value, share in ((0.22, 0.1), (0.19, -0.05), (0.2, 0.0)):
            (result,) = judged(Goals(max_worsening=0.05), scored(0.2, RMSE), scored(value, RMSE))
            assert result.value == pytest.approx(share)
            assert result.met == (share <= 0.05)
        gain = Metric(name="overlap", higher_is_better=True, kind="mean")
        (result,) = judged(Goals(max_worsening=0.05), scored(0.8, gain), scored(0.72, gain))
        assert result.value == pytest.approx(0.1)
        assert result.sentence == (
            "max_worsening MISSED: overlap fell from 0.8 to 0.72, 10.00 % worse, at most 5 % worse asked"
        )

    def test_of_nothing_is_no_share_and_is_missed_unless_nothing_got_worse(self) -> None:
        (missed,) = judged(Goals(max_worsening=0.05), scored(0.0, RMSE), scored(0.1, RMSE))
        assert (missed.value, missed.met) == (None, False)
        (met,) = judged(Goals(max_worsening=0.05), scored(0.0, RMSE), scored(0.0, RMSE))
        assert met.met


def scored(value: float, metric: Metric) -> EngineMeasurement:
    score = MeanScore(metric=metric, count=10, value=value, interval=Interval(low=value, high=value))
    return TEACHER.model_copy(update={"score": score})
