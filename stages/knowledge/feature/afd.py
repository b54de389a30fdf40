"""Attentive feature distillation."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import FAINT, LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import as_tokens, bridge, like, width


class AttentiveFeatures(LayerMethod, frozen=True, extra="forbid"):
    """Where the teacher's channels light up, each weighed by how much a small network finds it matters in a sample.

    The small network is trained by the same loss, and so turns to the channels that the student can learn. The paper
    transfers between equal networks; a projector bridges other channels. The weight is that of the usual code.
    """

    source = "AFD, Wang et al. 2020, ICLR"

    weight: Annotated[float, Field(gt=0)] = 500.0

    def term(self, pair: Pair) -> Term:
        """For maps and tokens of any shapes."""
        return _AttendedChannels(pair.matches(self.layers, axes=(3, 4)))


class _AttendedChannels(Term):
    def __init__(self, matches: list[Match]) -> None:
        super().__init__(matches)
        self.projectors = nn.ModuleList(bridge(match.student_shape, match.teacher_shape) for match in matches)
        self.attentions = nn.ModuleList(ChannelAttention(width(match.teacher_shape)) for match in matches)

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        losses: list[Tensor] = []
        for project, attend, (mine, theirs) in zip(self.projectors, self.attentions, self.maps(seen), strict=True):
            student, teacher = as_tokens(like(project(mine), theirs.shape)), as_tokens(theirs)
            losses.append(attended_distance(student, teacher, attend(teacher)))
        return mean_over_layers(losses)


class ChannelAttention(nn.Module):
    """Squeeze and excitation: how much each channel counts, in a sample, from the means of all of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.excite = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C) to weights (B, C) that sum to 1: σ(x_c) / Σ σ(x)."""
        return functional.logsigmoid(self.excite(tokens.mean(1))).softmax(1)


def attended_distance(student: Tensor, teacher: Tensor, attention: Tensor) -> Tensor:
    """Σ_c ρ_c mean_n (ŝ_nc - t̂_nc)², each channel's N places of length 1; tokens (B, N, C), ρ (B, C): (B,).

    Wang et al. 2020, with the normalisation of the usual code.
    """
    mine, theirs = (functional.normalize(tokens, dim=1, eps=FAINT) for tokens in (student, teacher))
    return (attention * (mine - theirs).square().mean(1)).sum(1)
