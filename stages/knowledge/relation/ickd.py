"""Inter-channel correlation."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..bridged import BridgedTerm
from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Pair

FAINT = 1e-20
"""Channels whose products with all others have a smaller sum of squares are taken for dead, in maps of length 1."""


class InterChannelCorrelations(LayerMethod, frozen=True, extra="forbid"):
    """Which channels of a layer are active in the same places, in each sample (ICKD-C).

    Where student and teacher differ in channels, projectors bridge them. Costs the smaller of C² and (H·W)² numbers a
    sample.
    """

    kind = "relation"
    source = "ICKD, Liu et al. 2021, arXiv 2202.03680"

    weight: Annotated[float, Field(gt=0)] = 2.5
    """Of the mean over the layers; the paper takes the last alone."""

    def term(self, pair: Pair) -> Term:
        """For maps, or tokens that are a square grid of patches."""
        return _CorrelationsTerm(pair.matches(self.layers, grids=True))


class _CorrelationsTerm(BridgedTerm):
    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        return mean_over_layers([channel_distance(mine, theirs) for mine, theirs in self.grids(seen)])


def channel_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s - G_t‖²_F / C, where G is F·Fᵀ with rows of length 1 and F the maps as (C, H·W); (B, C, H, W) in, (B,) out.

    Liu et al. 2021. Rows of length 1 and the division by C are the official code's, which the default weight is for;
    the paper has plain products over C². Of rows of length 1, ‖g_s - g_t‖² = 2 - 2·cos(g_s, g_t), so that no C × C
    matrix is needed where there are fewer positions than channels.
    """
    mine, theirs = (
        functional.normalize(maps.flatten(1), dim=1).view_as(maps).flatten(2) for maps in (student, teacher)
    )
    squares, others = row_products(mine, mine), row_products(theirs, theirs)
    lengths = squares.clamp_min(FAINT).sqrt(), others.clamp_min(FAINT).sqrt()
    cosines = row_products(mine, theirs) / lengths[0] / lengths[1]
    return (squares / lengths[0].square() + others / lengths[1].square() - 2 * cosines).mean(1)


def row_products(first: Tensor, second: Tensor) -> Tensor:
    """Σ_j (a_i·a_j)·(b_i·b_j), the products of like rows of A·Aᵀ and B·Bᵀ; (B, C, N) and (B, C, M) in, (B, C) out."""
    if first.shape[2] * second.shape[2] < first.shape[1] ** 2:
        return (first @ (first.transpose(1, 2) @ second) * second).sum(2)
    return ((first @ first.transpose(1, 2)) * (second @ second.transpose(1, 2))).sum(2)
