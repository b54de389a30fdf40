"""k-means in one dimension."""

import torch
from torch import Tensor

MOST_ROUNDS = 300
"""Of moving every centre to the mean of its values; weights settle in far fewer."""


def nearest_centres(values: Tensor, clusters: int) -> Tensor:
    """Which of `clusters` centres each value, (N), belongs to, numbered from the least centre to the greatest.

    The centres begin evenly between the least and the greatest value, which keeps the few large weights apart from the
    many small ones (Han et al. 2016, arXiv 1510.00149, §3.2), and move to the means of their values until they rest.
    """
    if not len(values):
        return torch.zeros(0, dtype=torch.int64)
    ordered, order = values.detach().double().sort()
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    centres = torch.linspace(float(ordered[0]), float(ordered[-1]), clusters, dtype=torch.float64)
    bounds = _bounds(ordered, centres)
    for _ in range(MOST_ROUNDS):
        counts = bounds.diff()
        centres = torch.where(counts > 0, sums[bounds].diff() / counts.clamp(min=1), centres)
        moved = _bounds(ordered, centres)
        if torch.equal(moved, bounds):
            break
        bounds = moved
    numbers = torch.empty(len(values), dtype=torch.int64)
    numbers[order] = torch.repeat_interleave(torch.arange(clusters), bounds.diff())
    return numbers


def _bounds(ordered: Tensor, centres: Tensor) -> Tensor:
    """Where among the values each centre's own begin, and the end: half way between two centres."""
    between = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
    return torch.cat([between.new_zeros(1), between, between.new_full((1,), len(ordered))])
