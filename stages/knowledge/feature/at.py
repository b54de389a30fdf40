"""Attention transfer."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import FAINT, LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import as_maps, common_size


class AttentionTransfer(LayerMethod, frozen=True, extra="forbid"):
    """Where the teacher's maps are strong, summed over the channels.

    The paper writes the norm of the difference; its official code, which this follows, the mean of its squares over
    the places. Both sum over the layers; the mean over them with the same weight of 1000 is that of the
    Knowledge-Distillation-Zoo. The smaller the maps, the more it counts.
    """

    source = "AT, Zagoruyko & Komodakis 2017, arXiv 1612.03928"

    p: Annotated[float, Field(ge=1)] = 2.0
    """The power of the activations: the higher, the more the strongest channel of each place counts."""
    weight: Annotated[float, Field(gt=0)] = 1000.0

    def term(self, pair: Pair) -> Term:
        """For maps of any channels and sizes, or tokens that are a square grid of patches; nothing is trained."""
        return _Attentions(pair.matches(self.layers, grids=True), self.p)


class _Attentions(Term):
    def __init__(self, matches: list[Match], p: float) -> None:
        super().__init__(matches)
        self._p = p

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        return mean_over_layers(
            [attention_distance(as_maps(mine), as_maps(theirs), self._p) for mine, theirs in self.maps(seen)]
        )


def attention_distance(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """The mean over places of (Q_s / ‖Q_s‖₂ - Q_t / ‖Q_t‖₂)², Q = Σ_c |F_c|^p, of maps (B, C, H, W): (B,).

    Zagoruyko & Komodakis 2017, eq. 2. Where heights and widths differ, Q is averaged to the smaller ones.
    """
    mine, theirs = common_size(attention(student, p), attention(teacher, p))
    return (functional.normalize(mine.flatten(1)) - functional.normalize(theirs.flatten(1))).square().mean(1)


def attention(maps: Tensor, p: float) -> Tensor:
    """Σ_c |F_c|^p of maps (B, C, H, W), each sample's strongest activation first brought to 1: (B, 1, H, W).

    No scale changes the attention once it is normalised, and powers of large or small activations stay in range.
    """
    strongest = maps.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(FAINT)
    return (maps / strongest).abs().pow(p).sum(1, keepdim=True)
