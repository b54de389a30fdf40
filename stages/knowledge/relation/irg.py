"""Instance relationship graphs."""

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Pair
from ..projection import as_maps, common_size

COINCIDENT = 1e-10
"""Squared distances, over the mean squared length, below which all samples are at one place but for rounding."""
TINY = 1e-12
"""The least number to divide by."""


class Graphs(LayerMethod, frozen=True, extra="forbid"):
    """Logits, the distances between samples in each layer, and how far each sample moves from layer to layer."""

    kind = "relation"
    needs = ("maps", "features", "logits")
    source = "IRG, Liu et al. 2019, CVPR"

    vertices: Annotated[float, Field(ge=0)] = 0.1
    """Weighs the logits."""
    edges: Annotated[float, Field(ge=0)] = 5.0
    """Weighs the distances between samples, in the layers and in the pooled features."""
    transformation: Annotated[float, Field(ge=0)] = 5.0
    """Weighs the distances from layer to layer."""

    def term(self, pair: Pair) -> Term:
        """For networks with a linear head and two layers or more of maps, or of tokens that are a square grid."""
        return _GraphsTerm(self, pair)


class _GraphsTerm(Term):
    def __init__(self, method: Graphs, pair: Pair) -> None:
        super().__init__([*pair.matches(method.layers, grids=True, at_least=2), pair.features()])
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """A scalar."""
        method, maps = self._method, self.maps(seen)
        edges = [squared_error(edge_lengths(mine), edge_lengths(theirs)) for mine, theirs in maps]
        moves = [
            squared_error(moved(mine, mine_next), moved(theirs, theirs_next))
            for (mine, theirs), (mine_next, theirs_next) in pairwise(maps[:-1])
        ]
        return (
            method.vertices * squared_error(seen.student.logits, seen.teacher.logits)
            + method.edges * mean_over_layers(edges)
            + method.transformation * mean_over_layers(moves)
        )


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of (s - t)², a scalar."""
    return (student - teacher).square().mean()


def edge_lengths(layer: Tensor) -> Tensor:
    """‖x_i - x_j‖² over the largest of them, samples (B, …) in, (B, B) out. Liu et al. 2019, the edges of a graph."""
    rows = layer.flatten(1)
    # Distances stay as they are, and no digits are lost to a common part of all samples.
    centred = rows - rows.mean(0)
    squares = centred.square().sum(1)
    found = (squares[:, None] + squares - 2 * centred @ centred.T).clamp_min(0)
    apart = 1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return _over_largest(found * apart, rows)


def moved(first: Tensor, second: Tensor) -> Tensor:
    """‖x - x'‖² of each sample in two layers, over the largest of them: (B,). Liu et al. 2019, the transformation.

    Layers are maps, or tokens read as such; the larger is averaged to the size of the smaller, and the channels of
    the wider to the number of the narrower, neighbours together.
    """
    first, second = common_size(as_maps(first), as_maps(second))
    channels = min(first.shape[1], second.shape[1])
    first, second = (_narrowed(maps, channels).flatten(1) for maps in (first, second))
    return _over_largest((first - second).square().sum(1), torch.cat([first, second]))


def _narrowed(maps: Tensor, channels: int) -> Tensor:
    by_place = maps.flatten(2).transpose(1, 2)
    return functional.adaptive_avg_pool1d(by_place, channels)


def _over_largest(squares: Tensor, rows: Tensor) -> Tensor:
    floor = COINCIDENT * rows.detach().square().sum(1).mean()
    return squares / torch.maximum(squares.max(), floor).clamp_min(TINY)
