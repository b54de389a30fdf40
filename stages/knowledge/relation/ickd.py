"""Correlations between channels."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import as_tokens


class ChannelCorrelation(LayerMethod, frozen=True, extra="forbid"):
    """Which channels of the teacher light up together in a sample, as a matrix of their likeness."""

    kind = "relation"
    source = "ICKD-C, Liu et al. 2021, ICCV"

    weight: Annotated[float, Field(gt=0)] = 2.5

    def term(self, pair: Pair) -> Term:
        """With a 1×1 projection of the student's channels; `auto` takes the last layers alone, as the paper does."""
        matches = pair.matches(self.layers, axes=(3, 4))
        return _ChannelCorrelations(matches[-1:] if self.layers == "auto" else matches)


class _ChannelCorrelations(Term):
    def __init__(self, matches: list[Match]) -> None:
        super().__init__(matches)
        self.projections = nn.ModuleList(
            nn.Linear(_channels(match.student_shape), _channels(match.teacher_shape), bias=False) for match in matches
        )

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        pairs = zip(self.projections, self.maps(seen), strict=True)
        return mean_over_layers(
            [unlike_channels(project(as_tokens(mine)), as_tokens(theirs)) for project, (mine, theirs) in pairs]
        )


def _channels(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) == 4 else shape[2]


def unlike_channels(student: Tensor, teacher: Tensor) -> Tensor:
    """‖G_s - G_t‖² with G = Fᵀ·F (C, C), each row of unit length; tokens F (B, N, C) in, (B,) out. Liu et al. 2021.

    The numbers of tokens may differ. Paper and official code bring G to unit length in different ways; this is the
    code's, by rows.
    """
    return (channel_likeness(student) - channel_likeness(teacher)).square().sum((1, 2))


def channel_likeness(tokens: Tensor) -> Tensor:
    """G of tokens (B, N, C): (B, C, C)."""
    return functional.normalize(tokens.transpose(1, 2) @ tokens, dim=2)
