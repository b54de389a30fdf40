"""The range of an activation, from a histogram of its values, by the methods of the field."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...pipeline.quantization import ACTIVATION_LEVELS, ActivationRange, Calibration, Grids

NUM_BINS = 2048
"""As in TensorRT's and ONNX Runtime's calibrators: eight bins to a level of the widest grid."""
SHRINKS = 40
"""Steps in which each end of a range is tried, from the extreme to a fortieth of it."""


@dataclass(frozen=True)
class Histogram:
    """How often an activation's values fall into equal bins between its extremes, zero among them."""

    low: float
    high: float
    counts: Tensor
    """(NUM_BINS,) float64."""

    @classmethod
    def empty(cls, low: float, high: float) -> "Histogram":
        """Between these extremes, widened to hold zero and not to be a single point."""
        low, high = min(low, 0.0), max(high, 0.0)
        return cls(low, high if high > low else low + 1e-6, torch.zeros(NUM_BINS, dtype=torch.float64))

    def add(self, values: Tensor) -> None:
        """Count these values too."""
        self.counts.add_(torch.histc(values.double().cpu(), NUM_BINS, self.low, self.high))

    @property
    def centers(self) -> Tensor:
        """The value that stands for each bin."""
        width = (self.high - self.low) / NUM_BINS
        return self.low + width * (torch.arange(NUM_BINS, dtype=torch.float64) + 0.5)


def chosen_range(histogram: Histogram, calibration: Calibration, grids: Grids = "affine") -> tuple[float, float]:
    """The low and high end that `calibration.method` chooses for these grids; zero is always between them.

    `percentile`: what a share of the values lies below, and above. `mse`: least squared error of the values after
    rounding and clipping. `entropy`: least Kullback-Leibler divergence of the rounded from the clipped distribution
    (Migacz 2017, 8-bit Inference with TensorRT).
    """
    match calibration.method:
        case "min_max":
            return histogram.low, histogram.high
        case "percentile":
            return _percentiles(histogram, calibration.percentile / 100)
        case "mse":
            candidates = _candidates(histogram) if grids == "affine" else _around_zero(histogram)
            return min(candidates, key=lambda ends: squared_error(histogram, *ends, grids))
        case "entropy":
            shrunk = _shrunk(histogram) if grids == "affine" else _around_zero(histogram)
            return min(shrunk, key=lambda ends: divergence(histogram, *ends, _num_levels(*ends, grids)))


def _percentiles(histogram: Histogram, share: float) -> tuple[float, float]:
    cumulative = histogram.counts.cumsum(0) / histogram.counts.sum()
    edges = torch.linspace(histogram.low, histogram.high, NUM_BINS + 1, dtype=torch.float64)
    high = edges[1 + int(torch.searchsorted(cumulative, share).clamp(max=NUM_BINS - 1))]
    low = edges[int(torch.searchsorted(cumulative, 1 - share, right=True).clamp(max=NUM_BINS - 1))]
    return min(float(low), 0.0), max(float(high), 0.0)


def _candidates(histogram: Histogram) -> Iterator[tuple[float, float]]:
    """Each end shrunk by itself; an end at zero stays there."""
    steps = [step / SHRINKS for step in range(SHRINKS, 0, -1)]
    for low in steps if histogram.low < 0 else [1.0]:
        for high in steps if histogram.high > 0 else [1.0]:
            yield histogram.low * low, histogram.high * high


def _shrunk(histogram: Histogram) -> Iterator[tuple[float, float]]:
    """Both ends shrunk alike, down to where a bin is a level."""
    least = (ACTIVATION_LEVELS + 1) / NUM_BINS
    for step in range(2 * SHRINKS, 0, -1):
        share = step / (2 * SHRINKS)
        if share >= least:
            yield histogram.low * share, histogram.high * share


def _around_zero(histogram: Histogram) -> Iterator[tuple[float, float]]:
    """What a symmetric grid reaches of the values, shrunk from the largest of them down to where a bin is a level."""
    largest = max(-histogram.low, histogram.high)
    for step in range(2 * SHRINKS, 0, -1):
        reach = largest * step / (2 * SHRINKS)
        low, high = max(histogram.low, -reach), min(histogram.high, reach)
        if (high - low) / (histogram.high - histogram.low) * NUM_BINS >= _num_levels(low, high, "symmetric"):
            yield low, high


def _num_levels(low: float, high: float, grids: Grids) -> int:
    """How many codes of the grid lie between the ends."""
    return round((high - low) / ActivationRange.spanning(low, high, grids).scale) + 1


def squared_error(histogram: Histogram, low: float, high: float, grids: Grids = "affine") -> float:
    """The mean squared difference between the values and what a uint8 grid from `low` to `high` makes of them."""
    grid = ActivationRange.spanning(low, high, grids)
    values = histogram.centers
    codes = torch.clamp(torch.round(values / grid.scale) + grid.zero_point, 0, ACTIVATION_LEVELS)
    errors = ((codes - grid.zero_point) * grid.scale - values).square()
    return float((histogram.counts * errors).sum() / histogram.counts.sum())


def divergence(histogram: Histogram, low: float, high: float, num_levels: int = ACTIVATION_LEVELS + 1) -> float:
    """KL(P ‖ Q) in nats: P the values clipped to the range, Q the same on `num_levels` levels.

    Each level's count is spread evenly over those of its bins that hold any value. The bin of zero counts as much as
    the next one: behind a ReLU half of the values lie there, which every grid holds exactly, and would decide alone.
    """
    centers, counts = histogram.centers, histogram.counts.clone()
    zero = min(int(-histogram.low / (histogram.high - histogram.low) * NUM_BINS), NUM_BINS - 1)
    counts[zero] = counts[zero + 1 if zero + 1 < NUM_BINS else zero - 1]
    inside = (centers >= low) & (centers <= high)
    positions = inside.nonzero().flatten()
    first, last = int(positions[0]), int(positions[-1])
    kept = counts[first : last + 1]
    clipped = kept.clone()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last + 1 :].sum()
    level = torch.arange(len(kept)) * num_levels // len(kept)
    held = (kept > 0).double()
    totals = torch.zeros(num_levels, dtype=torch.float64).index_add_(0, level, kept)
    bins = torch.zeros_like(totals).index_add_(0, level, held)
    some = clipped > 0
    # An end bin that held nothing until what lies beyond was clipped into it counts as if it had held one value.
    spread = ((totals / bins.clamp(min=1))[level] * held)[some].clamp(min=1)
    p, q = clipped[some] / clipped.sum(), spread / spread.sum()
    return float((p * (p / q).log()).sum())
