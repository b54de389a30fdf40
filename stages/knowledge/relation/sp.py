"""Similarities between samples."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Pair


class SimilarityPreserving(LayerMethod, frozen=True, extra="forbid"):
    """Which samples of a batch light up the same features, as a matrix of their likeness."""

    kind = "relation"
    source = "SP, Tung & Mori 2019, arXiv 1907.09682"

    weight: Annotated[float, Field(gt=0)] = 3000.0

    def term(self, pair: Pair) -> Term:
        """For maps, tokens or vectors of any shapes: only samples are compared."""
        return _Similarities(pair.matches(self.layers))


class _Similarities(Term):
    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, a scalar."""
        return mean_over_layers([unlike_similarities(mine, theirs) for mine, theirs in self.maps(seen)])


def unlike_similarities(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s - G_t‖²/B² with G = F·Fᵀ, each row of unit length; maps (B, …) flattened to F (B, D), a scalar out.

    Tung & Mori 2019, eq. 1 to 4.
    """
    return (similarities(student) - similarities(teacher)).square().mean()


def similarities(maps: Tensor) -> Tensor:
    """G of maps (B, …): (B, B)."""
    flat = maps.flatten(1)
    return functional.normalize(flat @ flat.T, dim=1)
