"""Random changes of whole batches of training images."""

from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

Augmentation = Literal["random_crop", "flip"]

CROP_PADDING = 4
"""Pixels of zeros around an image before it is cropped back to its size: the CIFAR convention of He et al. 2015."""


def augmented(
    inputs: dict[str, Tensor], kinds: tuple[Augmentation, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """Every image input (B, C, H, W) changed alike, sample by sample; other inputs as they are."""
    # NumPy copies views of images 5 times faster than torch does: 0.3 against 1.6 ms for 128 images of 3x32x32.
    images = {name: tensor.numpy() for name, tensor in inputs.items() if tensor.ndim == 4}
    num_samples = len(next(iter(inputs.values())))
    if "random_crop" in kinds:
        offsets = torch.randint(0, 2 * CROP_PADDING + 1, (2, num_samples), generator=generator).numpy()
        images = {name: _cropped(x, offsets) for name, x in images.items()}
    if "flip" in kinds:
        flip = (torch.rand(num_samples, generator=generator) < 0.5).numpy()
        images = {name: _flipped(x, flip) for name, x in images.items()}
    return {name: torch.as_tensor(images[name]) if name in images else tensor for name, tensor in inputs.items()}


def _cropped(images: Array, offsets: Array) -> Array:
    count, channels, height, width = images.shape
    padded = np.zeros((count, channels, height + 2 * CROP_PADDING, width + 2 * CROP_PADDING), images.dtype)
    padded[:, :, CROP_PADDING:-CROP_PADDING, CROP_PADDING:-CROP_PADDING] = images
    # All crops are views of the padded batch; one indexing copies those that were drawn.
    crops = sliding_window_view(padded, (height, width), axis=(2, 3))
    return crops[np.arange(count), :, offsets[0], offsets[1]]


def _flipped(images: Array, flip: Array) -> Array:
    mirrored = images.copy()
    mirrored[flip] = images[flip][..., ::-1]
    return mirrored
