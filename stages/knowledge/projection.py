"""Bringing a student's maps to the shape of the teacher's: trained projectors, and resizing without parameters."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


def projector(student: Shape, teacher: Shape) -> nn.Module:
    """A trained map from the student's shape to the teacher's, batch axes included in both.

    Maps to maps: a 1×1 convolution with batch norm, then `like`. Anything else: `like`, then a linear layer on the
    channels. First weights come from torch's global generator.
    """
    if len(student) == 4 and len(teacher) == 4:
        return _Resizing(nn.Conv2d(student[1], teacher[1], 1, bias=False), nn.BatchNorm2d(teacher[1]), to=teacher)
    return _Resizing(nn.Linear(width(student), width(teacher)), to=teacher)


def bridge(student: Shape, teacher: Shape) -> nn.Module:
    """A projector where the channels differ; where they are equal, nothing is trained and sizes stay as they are."""
    return nn.Identity() if width(student) == width(teacher) else projector(student, teacher)


def width(shape: Shape) -> int:
    """The number of channels of maps (B, C, H, W), tokens (B, N, D) or vectors (B, D)."""
    return shape[1] if len(shape) == 4 else shape[-1]


class _Resizing(nn.Sequential):
    def __init__(self, *layers: nn.Module, to: Shape) -> None:
        super().__init__(*layers)
        self._to = to

    def forward(self, input: Tensor) -> Tensor:
        """The student's (B, …) to the teacher's (B, …)."""
        if isinstance(self[0], nn.Conv2d):
            return like(self._through(input), self._to)
        input = like(input, self._to)
        return self._through(input.movedim(1, -1)).movedim(-1, 1) if input.ndim == 4 else self._through(input)

    def _through(self, input: Tensor) -> Tensor:
        for layer in self:
            input = layer(input)
        return input


def like(tensor: Tensor, shape: Shape) -> Tensor:
    """Maps, tokens or vectors as those of another shape are; channels stay.

    Maps become grids of tokens and back, a class token their mean; vectors are means, and spread evenly.
    """
    if len(shape) == 2:
        return tensor if tensor.ndim == 2 else as_tokens(tensor).mean(1)
    if tensor.ndim == 2:
        tensor = tensor[:, None]
        return like(tensor.expand(-1, shape[1] if len(shape) == 3 else shape[2] * shape[3], -1), shape)
    if len(shape) == 3:
        return tokens_resized(tensor, shape[1]) if tensor.ndim == 3 else _tokens_from_maps(tensor, shape[1])
    if tensor.ndim == 4 or is_grid(tuple(tensor.shape)):
        return resized(as_maps(tensor), shape[2:])
    return tokens_resized(tensor, shape[2] * shape[3]).transpose(1, 2).reshape(len(tensor), -1, shape[2], shape[3])


def resized(maps: Tensor, size: Shape) -> Tensor:
    """Maps (B, C, H, W) of another height and width: averaged where they are larger, interpolated where smaller."""
    smaller = (min(maps.shape[2], size[0]), min(maps.shape[3], size[1]))
    if maps.shape[2:] != smaller:
        maps = functional.adaptive_avg_pool2d(maps, smaller)
    if size == smaller:
        return maps
    return functional.interpolate(maps, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def tokens_resized(tokens: Tensor, count: int) -> Tensor:
    """Tokens (B, N, D) of another number: grids of patches as images are, a class token kept apart; else along N."""
    number = tokens.shape[1]
    if number == count:
        return tokens
    mine = _grid(number)
    if mine and _grid(count):
        first = tokens[:, :1] if mine[1] else None
        return _tokens_from_maps(as_maps(tokens), count, first)
    return functional.interpolate(tokens.transpose(1, 2), size=count, mode="linear", align_corners=False).transpose(
        1, 2
    )


def _tokens_from_maps(maps: Tensor, count: int, first: Tensor | None = None) -> Tensor:
    """`count` tokens; where they are a grid and a class token, that is `first` (B, 1, C), or the maps' mean."""
    grid = _grid(count)
    if grid is None:
        return tokens_resized(as_tokens(maps), count)
    side, extra = grid
    patches = as_tokens(resized(maps, (side, side)))
    if not extra:
        return patches
    return torch.cat([patches.mean(1, keepdim=True) if first is None else first, patches], 1)


def common_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps averaged to the smaller height and the smaller width of the two."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return resized(student, size), resized(teacher, size)


def as_tokens(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) as tokens (B, H·W, C); tokens and vectors as they are."""
    return maps.flatten(2).transpose(1, 2) if maps.ndim == 4 else maps


def as_maps(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) as maps (B, D, √N, √N), a first class token left out; maps as they are."""
    if tokens.ndim == 4:
        return tokens
    grid = _grid(tokens.shape[1])
    assert grid is not None, "only square grids of patches are maps"
    side, extra = grid
    return tokens[:, extra:].transpose(1, 2).reshape(len(tokens), -1, side, side)


def is_grid(shape: Shape) -> bool:
    """Whether (B, C, H, W), or tokens (B, N, D) that are a square grid of patches with or without a class token."""
    return len(shape) == 4 or (len(shape) == 3 and _grid(shape[1]) is not None)


def _grid(count: int) -> tuple[int, int] | None:
    """The side of a square of patches, and 1 where a class token comes before them."""
    for extra in (0, 1):
        side = math.isqrt(count - extra)
        if side > 1 and side * side == count - extra:
            return side, extra
    return None
