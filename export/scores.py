"""A metric and its changes from the samples' own values, with intervals by drawing the samples anew.

The intervals are the percentiles of a bootstrap over samples (Efron 1979): squared errors have long tails, for which
the normal approximation is symmetric where it should not be, and could put the square root of a mean below zero.
Two engines that saw the same samples are compared sample by sample: every draw takes the same samples of both, so that
what is hard about a sample cancels, and a small change that most samples share is told from chance.
"""

import numpy as np
from numpy.typing import NDArray

from ..pipeline.errors import ExportError
from ..pipeline.metric import Metric
from .measurement import Accuracy, Interval, MeanScore, Score, ScoreChange

DRAWS = 2000
SEED = 0
"""Of the draws, so that the same values always give the same interval."""
VALUES_AT_ONCE = 2_000_000
"""Drawn values held in memory."""

Values = NDArray[np.float64]
"""One value a sample."""


def score_of(values: Values, metric: Metric) -> Score:
    """The metric over all samples. ExportError where a value is not finite."""
    if not np.isfinite(values).all():
        raise ExportError(
            f"the engine's {metric.name} is not finite for {int((~np.isfinite(values)).sum())} test samples; look at "
            "its weights and at the task"
        )
    if metric.kind == "share":
        return Accuracy(correct=int(values.sum()), count=len(values))
    (drawn,) = _drawn_means(values)
    interval = _interval(_of(drawn, metric))
    return MeanScore(metric=metric, count=len(values), value=metric.of(float(values.mean())), interval=interval)


def paired_change(before: Values, after: Values, metric: Metric) -> ScoreChange:
    """How much the second engine's metric is higher, both over the same samples in the same order."""
    drawn_before, drawn_after = _drawn_means(before, after)
    return ScoreChange(
        metric=metric,
        value=metric.of(float(after.mean())) - metric.of(float(before.mean())),
        interval=_interval(_of(drawn_after, metric) - _of(drawn_before, metric)),
    )


def _drawn_means(*values: Values) -> list[Values]:
    """The means of each over DRAWS draws of as many samples, the same ones in all of them."""
    count = len(values[0])
    draws = np.random.default_rng(SEED)
    means = [np.empty(DRAWS) for _ in values]
    rows = max(1, VALUES_AT_ONCE // count)
    for start in range(0, DRAWS, rows):
        picks = draws.integers(count, size=(min(rows, DRAWS - start), count))
        for mean, each in zip(means, values, strict=True):
            mean[start : start + rows] = each[picks].mean(1)
    return means


def _of(means: Values, metric: Metric) -> Values:
    return np.sqrt(means) if metric.kind == "root_mean" else means


def _interval(values: Values) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(low=float(low), high=float(high))
