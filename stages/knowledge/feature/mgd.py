"""Masked generative distillation."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import as_maps, bridge, like, width
from .hint import squared_error


class MaskedGeneration(LayerMethod, frozen=True, extra="forbid"):
    """The teacher's maps, generated from the student's with some channels or places blotted out at random.

    The paper blots out places of detectors' maps; for classification its code blots out channels. It sums the squared
    errors: its weight of 1.2e-3 on CIFAR is 5 times the mean over the 4096 values of a ResNet-56's last maps.
    """

    source = "MGD, Yang et al. 2022, arXiv 2205.01529"

    masked: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """How probably each one is blotted out."""
    mask: Literal["channels", "places"] = "channels"
    weight: Annotated[float, Field(gt=0)] = 5.0

    def term(self, pair: Pair) -> Term:
        """A generator of maps or grids of patches; `auto` takes the last layers alone, as the paper."""
        matches = pair.matches(self.layers, grids=True)
        return _Generated(matches[-1:] if self.layers == "auto" else matches, self)


class _Generated(Term):
    def __init__(self, matches: list[Match], method: MaskedGeneration) -> None:
        super().__init__(matches)
        self._method = method
        self.projectors = nn.ModuleList(bridge(match.student_shape, match.teacher_shape) for match in matches)
        self.generators = nn.ModuleList(_generator(width(match.teacher_shape)) for match in matches)

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers of the mean squared error, (B,)."""
        losses: list[Tensor] = []
        for project, generate, (mine, theirs) in zip(self.projectors, self.generators, self.maps(seen), strict=True):
            maps = as_maps(theirs)
            student = like(project(mine), maps.shape)
            losses.append(squared_error(generate(blotted(student, self._method.masked, self._method.mask)), maps))
        return mean_over_layers(losses)


def _generator(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
    )


def blotted(maps: Tensor, share: float, what: Literal["channels", "places"]) -> Tensor:
    """Maps (B, C, H, W) with whole channels, or all channels of places, set to zero, each with probability `share`.

    Each sample has draws of its own, from torch's global generator. What is left is not scaled up.
    """
    samples, channels, height, width = maps.shape
    size = (samples, channels, 1, 1) if what == "channels" else (samples, 1, height, width)
    return maps * (torch.rand(size, device=maps.device) >= share)
