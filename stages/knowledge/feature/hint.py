"""Hints."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import projector


class Hint(LayerMethod, frozen=True, extra="forbid"):
    """The teacher's feature maps, through projectors that are dropped afterwards."""

    source = "FitNets, Romero et al. 2015, arXiv 1412.6550"

    weight: Annotated[float, Field(gt=0)] = 1.0

    def term(self, pair: Pair) -> Term:
        """A projector for each pair of layers, whatever their channels and sizes."""
        return _Hints(pair.matches(self.layers))


class _Hints(Term):
    def __init__(self, matches: list[Match]) -> None:
        super().__init__(matches)
        self.projectors = nn.ModuleList(projector(match.student_shape, match.teacher_shape) for match in matches)

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers of the mean squared error, (B,)."""
        pairs = zip(self.projectors, self.maps(seen), strict=True)
        return mean_over_layers([squared_error(projector(mine), theirs) for projector, (mine, theirs) in pairs])


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of (s - t)² over all but the batch: (B, …) in, (B,) out."""
    return (student - teacher).square().flatten(1).mean(1)
