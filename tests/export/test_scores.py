"""Facts about a metric and its changes, from the samples' own values."""

import numpy as np
import pytest

from potstill.export.measurement import Accuracy, MeanScore
from potstill.export.scores import paired_change, score_of
from potstill.pipeline.errors import ExportError
from potstill.pipeline.metric import ACCURACY, RMSE, Metric

MEAN = Metric(name="overlap", higher_is_better=True, kind="mean")


def squares(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count) ** 2


class TestScore:
    def test_a_share_is_counted(self) -> None:
        assert score_of(np.array([1.0, 0.0, 1.0]), ACCURACY) == Accuracy(correct=2, count=3)

    def test_an_error_is_the_root_of_the_mean_and_lies_in_its_interval(self) -> None:
        score = score_of(squares(400, 0), RMSE)
        assert isinstance(score, MeanScore)
        assert score.value == pytest.approx(np.sqrt(squares(400, 0).mean()))
        assert 0 < score.interval.low < score.value < score.interval.high

    def test_about_95_percent_of_the_intervals_hold_the_truth(self) -> None:
        scores = [score_of(squares(200, seed), RMSE) for seed in range(200)]
        held = sum(score.interval.low <= 1 <= score.interval.high for score in scores)
        assert 0.9 * len(scores) <= held <= 0.99 * len(scores)

    def test_the_same_values_give_the_same_interval(self) -> None:
        assert score_of(squares(50, 1), MEAN) == score_of(squares(50, 1), MEAN)

    def test_what_is_not_finite_is_refused(self) -> None:
        with pytest.raises(ExportError, match="RMSE is not finite for 1 test samples"):
            score_of(np.array([1.0, np.nan]), RMSE)


class TestChange:
    def test_a_small_change_that_all_samples_share_is_told_from_chance(self) -> None:
        before = squares(200, 2)
        change = paired_change(before, 1.02 * before, RMSE)
        alone = score_of(before, RMSE)
        assert change.significant
        assert not change.improves
        assert change.interval.high - change.interval.low < 0.1 * (alone.interval.high - alone.interval.low)

    def test_equal_engines_differ_significantly_in_about_five_percent_of_experiments(self) -> None:
        alarms = sum(paired_change(squares(200, 2 * n), squares(200, 2 * n + 1), RMSE).significant for n in range(200))
        assert 0.01 * 200 <= alarms <= 0.1 * 200

    def test_the_same_engine_is_no_change(self) -> None:
        change = paired_change(squares(20, 3), squares(20, 3), MEAN)
        assert (change.value, change.significant, change.improves) == (0, False, False)
