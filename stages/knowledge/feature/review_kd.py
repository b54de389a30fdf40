"""Knowledge review."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ....pipeline.errors import StageError
from ..method import LayerMethod, Observation, Share, Term
from ..pair import Match, Pair
from ..projection import Shape, as_maps, resized

WIDEST = 512
"""The most channels in which levels are fused."""
PYRAMID = (4, 2, 1)
"""The sizes to which maps are averaged for their context."""


class KnowledgeReview(LayerMethod, frozen=True, extra="forbid"):
    """The teacher's maps at each level, from all of the student's levels at or below it.

    A residual chain goes from the deepest level up; the modules that fuse levels are dropped afterwards. Taps are the
    stage ends, before their activations where these are modules, and the pooled features where both heads are linear.
    The official code leaves the student's taps behind their activations for some students, and always resizes to the
    nearest pixel; here maps are resized as by other methods where teacher and student differ.
    """

    source = "Chen et al. 2021, arXiv 2104.09044"

    weight: Annotated[float, Field(gt=0)] = 1.0
    warmup: Share = 0.08

    def term(self, pair: Pair) -> Term:
        """Any number of levels, of any channels and sizes; tokens where they are square grids of patches."""
        matches = pair.matches(self.layers, grids=True, before_activation="where possible")
        try:
            matches = [*matches, pair.features()]
        except StageError:
            if len(matches) < 2:
                raise
        return _Review(matches)


class _Review(Term):
    def __init__(self, matches: list[Match]) -> None:
        super().__init__(matches)
        students = [_map_shape(match.student_shape) for match in matches]
        teachers = [_map_shape(match.teacher_shape) for match in matches]
        width = min(WIDEST, students[-1][1])
        last = len(matches) - 1
        self.fusions = nn.ModuleList(
            Fusion(mine[1], width, theirs, fuse=level < last)
            for level, (mine, theirs) in enumerate(zip(students, teachers, strict=True))
        )

    def forward(self, seen: Observation) -> Tensor:
        """The sum over the levels of the hierarchical context loss, (B,)."""
        pairs = [(_as_maps(mine), _as_maps(theirs)) for mine, theirs in self.maps(seen)]
        reviewed = review(self.fusions, [mine for mine, _ in pairs])
        losses = [context_loss(mine, theirs) for mine, (_, theirs) in zip(reviewed, pairs, strict=True)]
        return torch.stack(losses).sum(0)


def _map_shape(shape: Shape) -> Shape:
    return tuple(_as_maps(torch.empty(shape, device="meta")).shape)


def _as_maps(tensor: Tensor) -> Tensor:
    """Vectors (B, D) as maps of one pixel."""
    return tensor[:, :, None, None] if tensor.ndim == 2 else as_maps(tensor)


class Fusion(nn.Module):
    """The attention based fusion of a level with what came up from the deeper ones."""

    def __init__(self, in_channels: int, width: int, teacher: Shape, *, fuse: bool) -> None:
        super().__init__()
        self._size = teacher[2:]
        self.enter = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attend = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuse else None
        self.leave = nn.Sequential(nn.Conv2d(width, teacher[1], 3, padding=1, bias=False), nn.BatchNorm2d(teacher[1]))

    def forward(self, maps: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """The student's maps and the residual of the level below, to maps like the teacher's and the residual."""
        maps = self.enter(maps)
        if self.attend is not None:
            assert deeper is not None
            deeper = functional.interpolate(deeper, size=maps.shape[2:], mode="nearest")
            mine, below = self.attend(torch.cat([maps, deeper], 1)).split(1, 1)
            maps = mine * maps + below * deeper
        return self.leave(resized(maps, self._size)), maps


def review(fusions: Sequence[nn.Module] | nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """The student's maps like the teacher's at each level, shallowest first, each with all deeper ones fused in."""
    deeper: Tensor | None = None
    found: list[Tensor] = []
    for fusion, each in zip(reversed(list(fusions)), reversed(maps), strict=True):
        like_teacher, deeper = fusion(each, deeper)
        found.append(like_teacher)
    return found[::-1]


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss, Σ_l w_l MSE(pool_l(s), pool_l(t)) / Σ_l w_l of maps (B, C, H, W): (B,).

    Chen et al. 2021, arXiv 2104.09044, with the official weights: l are the full size and those of `PYRAMID` that are
    smaller, w_l = 1, ½, ¼, … in this order. The mean square is over channels and places.
    """
    error = student - teacher
    sizes = [size for size in PYRAMID if size < min(error.shape[2:])]
    levels = [error, *(functional.adaptive_avg_pool2d(error, size) for size in sizes)]
    weights = [0.5**level for level in range(len(levels))]
    squares = [weight * level.square().flatten(1).mean(1) for weight, level in zip(weights, levels, strict=True)]
    return torch.stack(squares).sum(0) / sum(weights)
