"""Bringing a student's maps to the shape of the teacher's: trained projectors, and resizing without parameters."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


def projector(student: Shape, teacher: Shape) -> nn.Module:
    """A trained map from the student's shape to the teacher's, batch axes included in both.

    Maps to maps: a 1×1 convolution with batch norm, then `resized`. Tokens or vectors: a linear layer. Between maps
    and tokens, the maps are read as a row of tokens. First weights come from torch's global generator.
    """
    if len(student) == 4 and len(teacher) == 4:
        return _Resizing(nn.Conv2d(student[1], teacher[1], 1, bias=False), nn.BatchNorm2d(teacher[1]), to=teacher)
    width = student[1] if len(student) == 4 else student[-1]
    return _Resizing(nn.Linear(width, teacher[1] if len(teacher) == 4 else teacher[-1]), to=teacher)


class _Resizing(nn.Sequential):
    def __init__(self, *layers: nn.Module, to: Shape) -> None:
        super().__init__(*layers)
        self._to = to

    def forward(self, input: Tensor) -> Tensor:
        """The student's (B, …) to the teacher's (B, …)."""
        if input.ndim == 4 and isinstance(self[0], nn.Linear):
            input = as_tokens(input)
        for layer in self:
            input = layer(input)
        if input.ndim == 3 and len(self._to) == 4:
            return resized(as_maps(input), self._to[2:])
        return like(input, self._to)


def like(tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor with the height and width, or the number of tokens, of another shape; channels stay."""
    if tensor.ndim == 4 and len(shape) == 4:
        return resized(tensor, shape[2:])
    if tensor.ndim == 3 and len(shape) == 3:
        return tokens_resized(tensor, shape[1])
    if tensor.ndim == 2 and len(shape) == 3:
        return tensor.unsqueeze(1).expand(-1, shape[1], -1)
    return tensor


def resized(maps: Tensor, size: Shape) -> Tensor:
    """Maps (B, C, H, W) of another height and width: averaged where they are larger, interpolated where smaller."""
    if maps.shape[2:] == size:
        return maps
    if maps.shape[2] >= size[0] and maps.shape[3] >= size[1]:
        return functional.adaptive_avg_pool2d(maps, (size[0], size[1]))
    return functional.interpolate(maps, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def tokens_resized(tokens: Tensor, count: int) -> Tensor:
    """Tokens (B, N, D) of another number: grids of patches as images are, a class token kept apart; else along N."""
    number = tokens.shape[1]
    if number == count:
        return tokens
    mine, theirs = _grid(number), _grid(count)
    if mine and theirs:
        (_, extra), (new_side, new_extra) = mine, theirs
        grid = resized(as_maps(tokens), (new_side, new_side)).flatten(2).transpose(1, 2)
        first = tokens[:, :extra] if extra else tokens.mean(1, keepdim=True)
        return torch.cat([first, grid], 1) if new_extra else grid
    return functional.interpolate(tokens.transpose(1, 2), size=count, mode="linear", align_corners=False).transpose(
        1, 2
    )


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
