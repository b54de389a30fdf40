"""Strong random changes of images, for methods that compare two views of a sample.

RandAugment (Cubuk et al. 2020, arXiv 1909.13719) with a magnitude drawn for each operation, then a cutout (DeVries &
Taylor 2017, arXiv 1708.04552). Drawn like the weak views: for all samples of a split at once, from the view alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .augmentation import View
from .seeding import generator

OPERATIONS = 2
"""How many changes an image gets, one after the other; the same kind may come twice."""
CUTOUT = 0.25
"""Side of the square that is blanked, as a share of the image's height."""


@dataclass(frozen=True)
class StrongDraws:
    """How each sample is changed."""

    kinds: Tensor
    """Numbers of `CHANGES`; int64 (OPERATIONS, N)."""
    magnitudes: Tensor
    """From -1 to 1; (OPERATIONS, N)."""
    centres: Tensor
    """Of the cutout, as shares of height and width; (2, N)."""

    @classmethod
    def of(cls, view: View, count: int) -> "StrongDraws":
        """The draws for `count` samples."""
        source = generator(view.seed, "strong view", view.number)
        kinds = torch.randint(0, len(CHANGES), (OPERATIONS, count), generator=source)
        magnitudes = 2 * torch.rand(OPERATIONS, count, generator=source) - 1
        return cls(kinds, magnitudes, torch.rand(2, count, generator=source))

    def at(self, index: Tensor) -> "StrongDraws":
        """The draws of some samples."""
        return StrongDraws(self.kinds[:, index], self.magnitudes[:, index], self.centres[:, index])


def strongly_augmented(images: Tensor, draws: StrongDraws, low: float, high: float) -> Tensor:
    """Images (B, C, H, W) whose values lie between `low` and `high`, changed; of the same dtype."""
    values = (images.float() - low) / (high - low)
    for kinds, magnitudes in zip(draws.kinds, draws.magnitudes, strict=True):
        changed = values.clone()
        for number, change in enumerate(CHANGES):
            chosen = kinds == number
            if chosen.any():
                changed[chosen] = change(values[chosen], magnitudes[chosen].reshape(-1, 1, 1, 1)).clamp(0, 1)
        values = changed
    values = _cut_out(values, draws.centres) * (high - low) + low
    return values.to(images.dtype) if images.dtype.is_floating_point else values.round().to(images.dtype)


def _cut_out(values: Tensor, centres: Tensor) -> Tensor:
    _, _, height, width = values.shape
    half = CUTOUT * height / 2
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    in_rows = (rows - centres[0].unsqueeze(1) * height).abs() < half
    in_columns = (columns - centres[1].unsqueeze(1) * width).abs() < half
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return torch.where(inside.unsqueeze(1), 0.5, values)


def _same(values: Tensor, magnitude: Tensor) -> Tensor:
    return values


def _brightness(values: Tensor, magnitude: Tensor) -> Tensor:
    return values * (1 + 0.9 * magnitude)


def _contrast(values: Tensor, magnitude: Tensor) -> Tensor:
    mean = values.mean((1, 2, 3), keepdim=True)
    return mean + (values - mean) * (1 + 0.9 * magnitude)


def _sharpness(values: Tensor, magnitude: Tensor) -> Tensor:
    blurred = functional.avg_pool2d(functional.pad(values, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return blurred + (values - blurred) * (1 + 0.9 * magnitude)


def _posterize(values: Tensor, magnitude: Tensor) -> Tensor:
    levels = 2.0 ** (8 - (4 * magnitude.abs()).round())
    return (values * (levels - 1)).round() / (levels - 1)


def _solarize(values: Tensor, magnitude: Tensor) -> Tensor:
    return torch.where(values > 1 - magnitude.abs(), 1 - values, values)


def _rotate(values: Tensor, magnitude: Tensor) -> Tensor:
    angle = magnitude.flatten() * math.radians(30)
    zero = torch.zeros_like(angle)
    rows = torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)
    return _moved(values, torch.stack(rows, 1))


def _shear_x(values: Tensor, magnitude: Tensor) -> Tensor:
    return _moved(values, _affine(magnitude, row=0, column=1, largest=0.3))


def _shear_y(values: Tensor, magnitude: Tensor) -> Tensor:
    return _moved(values, _affine(magnitude, row=1, column=0, largest=0.3))


def _translate_x(values: Tensor, magnitude: Tensor) -> Tensor:
    # Coordinates go from -1 to 1, so 0.6 is 0.3 of the width.
    return _moved(values, _affine(magnitude, row=0, column=2, largest=0.6))


def _translate_y(values: Tensor, magnitude: Tensor) -> Tensor:
    return _moved(values, _affine(magnitude, row=1, column=2, largest=0.6))


def _affine(magnitude: Tensor, *, row: int, column: int, largest: float) -> Tensor:
    """Identity maps (B, 2, 3) with one entry drawn."""
    maps = torch.eye(2, 3).repeat(len(magnitude), 1, 1)
    maps[:, row, column] += largest * magnitude.flatten()
    return maps


def _moved(values: Tensor, maps: Tensor) -> Tensor:
    """What comes in from outside the image is black."""
    grid = functional.affine_grid(maps, list(values.shape), align_corners=False)
    return functional.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _same,
    _brightness,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _rotate,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
"""Of images from 0 to 1, by magnitudes (B, 1, 1, 1) from -1 to 1."""
