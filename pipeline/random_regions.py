"""Random parts of images, resized: the crop that ImageNet's networks are trained with.

Szegedy et al. 2014 (arXiv 1409.4842, section 6) for the areas and the ratios of the sides.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

AREAS = (0.08, 1.0)
"""The share of the image's area that a part has."""
RATIOS = (3 / 4, 4 / 3)
"""Its width over its height."""
CANDIDATES = 10
"""How many parts are drawn until one lies within the image; after that, the last one is cut to it."""


def random_regions(source: torch.Generator, count: int) -> Tensor:
    """The parts of `count` square images, (4, count): left, top, width and height as shares of the side."""
    areas = torch.empty(CANDIDATES, count).uniform_(*AREAS, generator=source)
    ratios = torch.empty(CANDIDATES, count).uniform_(*map(math.log, RATIOS), generator=source).exp()
    widths, heights = (areas * ratios).sqrt(), (areas / ratios).sqrt()
    fits = (widths <= 1) & (heights <= 1)
    fits[-1] = True
    # The first candidate that fits: argmax gives the first of equal largest values.
    chosen = fits.to(torch.uint8).argmax(0, keepdim=True)
    width, height = (each.gather(0, chosen).clamp_max(1).squeeze(0) for each in (widths, heights))
    left, top = ((1 - length) * torch.rand(count, generator=source) for length in (width, height))
    return torch.stack([left, top, width, height])


def resized_regions(images: Tensor, regions: Tensor, size: int | None) -> Tensor:
    """The regions (4, B) of images (B, C, H, W), bilinearly resized to `size` pixels, or to the images' own size.

    Of the images' dtype.
    """
    left, top, width, height = regions
    zero = torch.zeros_like(left)
    # Coordinates go from -1 to 1, so a share s of the side begins at 2 s - 1.
    across = torch.stack([width, zero, 2 * left + width - 1], 1)
    down = torch.stack([zero, height, 2 * top + height - 1], 1)
    shape = [*images.shape[:2], *((size, size) if size else images.shape[2:])]
    grid = functional.affine_grid(torch.stack([across, down], 1), shape, align_corners=False)
    parts = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return parts.to(images.dtype) if images.dtype.is_floating_point else parts.round_().to(images.dtype)
