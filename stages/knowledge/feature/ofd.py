"""The overhaul of feature distillation."""

import math
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ..anatomy import BATCH_NORMS
from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import projector

RARELY_NEGATIVE = 30.0
"""Standard deviations of a mean above zero, beyond which the mean of negative values is 0 but for rounding."""


class FeatureOverhaul(LayerMethod, frozen=True, extra="forbid"):
    """The teacher's maps before their activation, negative ones raised to their channel's mean of these.

    Where the teacher is negative, the student has to be as low, but not higher than that. Layers that a recipe names
    are taken as they are, so name those before an activation, such as ``layer1.0.relu2:input``. Paper and code sum
    over channels and places, halving the weight for each earlier layer; in CIFAR ResNets this is the mean over all of
    these, with 12 for the usual weight of 1e-3. The code takes batch norms of residual branches for margins; here those
    that the values before the activation come from, and where they are sums, the batch.
    """

    source = "OFD, Heo et al. 2019, arXiv 1904.01866"

    weight: Annotated[float, Field(gt=0)] = 12.0

    def term(self, pair: Pair) -> Term:
        """A projector for each pair of layers; `auto` takes maps alone, as a transformer's blocks end in no activation.

        Raises StageError where no module shows what goes into an activation.
        """
        axes = (4,) if self.layers == "auto" else (2, 3, 4)
        matches = pair.matches(self.layers, axes=axes, before_activation=True)
        return _Overhaul(matches, [_known_margins(pair, match.teacher) for match in matches])


def _known_margins(pair: Pair, tap: str) -> Tensor | None:
    path = pair.teacher.batch_norm(tap)
    if path is None:
        return None
    norm = pair.teacher.module(path)
    assert isinstance(norm, BATCH_NORMS)
    if norm.affine:
        return negative_means(norm.bias.detach(), norm.weight.detach().abs())
    return negative_means(torch.zeros(norm.num_features), torch.ones(norm.num_features))


class _Overhaul(Term):
    def __init__(self, matches: list[Match], margins: list[Tensor | None]) -> None:
        super().__init__(matches)
        self.projectors = nn.ModuleList(projector(match.student_shape, match.teacher_shape) for match in matches)
        for layer, each in enumerate(margins):
            self.register_buffer(f"margin{layer}", each)

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        losses: list[Tensor] = []
        for layer, (mine, theirs) in enumerate(self.maps(seen)):
            margin: Tensor | None = getattr(self, f"margin{layer}")
            wanted = margin_relu(theirs, batch_margins(theirs) if margin is None else margin)
            losses.append(partial_distance(self.projectors[layer](mine), wanted))
        return mean_over_layers(losses)


def negative_means(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[x | x < 0] of normal variables, μ - σ φ(μ/σ) / Φ(-μ/σ) in their shape; where σ is zero, min(μ, 0).

    Heo et al. 2019, for x from a batch norm with shift μ and scale σ. φ(x) / Φ(-x) is √(2/π) / erfcx(x/√2), which holds
    where negative values are so rare that Φ is 0; the official code takes -3σ there.
    """
    mu, sigma = mean.double(), deviation.double()
    steps = (mu / sigma.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(RARELY_NEGATIVE)
    scaled_tail = cast(Tensor, torch.special.erfcx(steps / math.sqrt(2)))  # pyright: ignore[reportUnknownMemberType]
    found = sigma * (steps - math.sqrt(2 / math.pi) / scaled_tail)
    return torch.where(sigma > 0, found, mu.clamp_max(0)).to(mean.dtype)


def batch_margins(maps: Tensor) -> Tensor:
    """The mean of the negative values of each channel in a batch, 0 where there are none: maps (B, C, H, W) to (C,).

    Also of tokens (B, N, C) and vectors (B, C).
    """
    axes = (0, 2, 3) if maps.ndim == 4 else tuple(range(maps.ndim - 1))
    return maps.clamp_max(0).sum(axes) / (maps < 0).sum(axes).clamp_min(1)


def margin_relu(maps: Tensor, margins: Tensor) -> Tensor:
    """max(x, m_c) of maps (B, C, H, W), tokens (B, N, C) or vectors (B, C) with m ≤ 0 (C,). Heo et al. 2019."""
    return torch.maximum(maps, margins[:, None, None] if maps.ndim == 4 else margins)


def partial_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of (t - s)², but 0 where s ≤ t ≤ 0: (B, …) to (B,). Heo et al. 2019, a mean in place of a sum."""
    low_enough = (student <= teacher) & (teacher <= 0)
    return (teacher - student).square().masked_fill(low_enough, 0).flatten(1).mean(1)
