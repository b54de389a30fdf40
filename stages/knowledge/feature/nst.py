"""Neuron selectivity transfer."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import FAINT, LayerMethod, Observation, Term, mean_over_layers
from ..pair import Pair
from ..projection import as_maps, common_size


class NeuronSelectivity(LayerMethod, frozen=True, extra="forbid"):
    """Where the teacher's channels light up, each by itself, whatever their order and number.

    The polynomial kernel of the paper, of degree 2 and without a constant. The weight of 50 that is usual for a sum
    over layers is 150 times the mean of three.
    """

    source = "NST, Huang & Wang 2017, arXiv 1707.01219"

    weight: Annotated[float, Field(gt=0)] = 150.0

    def term(self, pair: Pair) -> Term:
        """For maps of any channels and sizes, or tokens that are a square grid of patches; nothing is trained."""
        return _Selectivities(pair.matches(self.layers, grids=True))


class _Selectivities(Term):
    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        return mean_over_layers([discrepancy(as_maps(mine), as_maps(theirs)) for mine, theirs in self.maps(seen)])


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """MMD² of two sets of channels' maps: mean k(t, t') + mean k(s, s') - 2 mean k(s, t), k(a, b) = ⟨a, b⟩²: (B,).

    Huang & Wang 2017, of maps (B, C, H, W), each channel's of length 1. Where heights and widths differ,
    both are averaged to the smaller ones. ⟨a, b⟩² = ⟨a·aᵀ, b·bᵀ⟩, so the discrepancy is the squared distance of the
    means of a·aᵀ, which are (HW, HW); where there are fewer channels than places, kernels (C, C) cost less.
    """
    mine, theirs = (functional.normalize(maps.flatten(2), dim=2, eps=FAINT) for maps in common_size(student, teacher))
    if mine.shape[2] <= min(mine.shape[1], theirs.shape[1]):
        return (_mean_product(mine) - _mean_product(theirs)).square().sum((1, 2))
    return _mean_kernel(theirs, theirs) + _mean_kernel(mine, mine) - 2 * _mean_kernel(mine, theirs)


def _mean_product(maps: Tensor) -> Tensor:
    return maps.transpose(1, 2) @ maps / maps.shape[1]


def _mean_kernel(mine: Tensor, theirs: Tensor) -> Tensor:
    return (mine @ theirs.transpose(1, 2)).square().mean((1, 2))
