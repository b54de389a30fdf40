"""Factor transfer."""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import FAINT, LayerMethod, Observation, Share, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import as_maps, like, width
from .hint import squared_error

SLOPE = 0.1
"""Of the leaky ReLUs."""


class FactorTransfer(LayerMethod, frozen=True, extra="forbid"):
    """The teacher's maps as a network paraphrases them, in fewer channels, for the student to translate its own to.

    The paper trains the paraphraser first, for 30 epochs. Here it learns to reconstruct the teacher's maps while the
    student trains, as a term of its own that no weight multiplies; the factors' loss does not reach it, or it would
    make factors that are easy to match. The warmup gives it a start.
    """

    source = "FT, Kim et al. 2018, arXiv 1802.04977"

    rate: Annotated[float, Field(gt=0)] = 0.5
    """The channels of the factors over those of the teacher's maps."""
    weight: Annotated[float, Field(gt=0)] = 200.0
    warmup: Share = 0.1

    def term(self, pair: Pair) -> Term:
        """Paraphraser and translator for maps or grids of patches; `auto` takes the last layers alone, as the paper."""
        matches = pair.matches(self.layers, grids=True)
        return _Factors(matches[-1:] if self.layers == "auto" else matches, self.rate)


class _Factors(Term):
    def __init__(self, matches: list[Match], rate: float) -> None:
        super().__init__(matches)
        channels = [width(match.teacher_shape) for match in matches]
        factors = [max(round(rate * each), 1) for each in channels]
        self.paraphrasers = nn.ModuleList(Paraphraser(*each) for each in zip(channels, factors, strict=True))
        self.translators = nn.ModuleList(
            encoder(width(match.student_shape), each) for match, each in zip(matches, factors, strict=True)
        )

    def forward(self, seen: Observation) -> tuple[Tensor, Tensor]:
        """The mean over the layers of the factors' distance, (B,), and of the paraphrasers' mean squared error."""
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        for paraphraser, translator, (mine, theirs) in zip(
            self.paraphrasers, self.translators, self.maps(seen), strict=True
        ):
            maps = as_maps(theirs)
            factor, reconstruction = paraphraser(maps)
            losses.append(factor_distance(translator(like(mine, maps.shape)), factor.detach()))
            errors.append(squared_error(reconstruction, maps).mean())
        return mean_over_layers(losses), mean_over_layers(errors)


class Paraphraser(nn.Module):
    """An autoencoder of maps (B, C, H, W) through factors (B, K, H, W)."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encode = encoder(channels, factors)
        self.decode = nn.Sequential(
            *_activated(nn.ConvTranspose2d(factors, factors, 3, padding=1), factors),
            *_activated(nn.ConvTranspose2d(factors, channels, 3, padding=1), channels),
            *_activated(nn.ConvTranspose2d(channels, channels, 3, padding=1), channels),
        )

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The factors, and the maps as reconstructed from them."""
        factor = self.encode(maps)
        return factor, self.decode(factor)


def encoder(channels: int, factors: int) -> nn.Sequential:
    """Three 3×3 convolutions from maps to factors: the paraphraser's first half, and the whole translator."""
    return nn.Sequential(
        *_activated(nn.Conv2d(channels, channels, 3, padding=1), channels),
        *_activated(nn.Conv2d(channels, factors, 3, padding=1), factors),
        *_activated(nn.Conv2d(factors, factors, 3, padding=1), factors),
    )


def _activated(convolution: nn.Module, channels: int) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(channels), nn.LeakyReLU(SLOPE)


def factor_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of |f_s / ‖f_s‖₂ - f_t / ‖f_t‖₂| of factors (B, …), each sample's of length 1: (B,).

    Kim et al. 2018, with p = 1 and a mean in place of the sum, as the usual code has.
    """
    mine, theirs = (functional.normalize(factor.flatten(1), eps=FAINT) for factor in (student, teacher))
    return (mine - theirs).abs().mean(1)
