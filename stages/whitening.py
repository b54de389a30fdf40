"""A first convolution that decorrelates the pixels of the training images' patches."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..pipeline.data import Dataset
from ..pipeline.errors import StageError

BATCH, BATCHES = 100, 50
"""Images at once, whose patches take many times their memory, and how many such batches: the first of the split."""

RIDGE = 5e-4
"""Added to the variances of the patches' components, so that near-constant ones are not blown up."""


@contextmanager
def whitened(student: nn.Module, data: Dataset) -> Generator[None]:
    """Give the first convolution whitening filters, which stay as they are within.

    They are the eigenvectors of the patches' covariance, each over the square root of its eigenvalue, those of most
    variance first, and then the same negated: what a ReLU takes from one of a pair, it leaves in the other. A network
    learns in far fewer epochs behind them (Page 2018, "How to Train Your ResNet 8"; Jordan 2024, arXiv 2404.00498).
    Raises StageError where samples are no images, or the layer has other than one or two filters for each component.
    """
    layer = _first_convolution(student, data)
    with torch.no_grad():
        layer.weight.copy_(whitening_filters(_images(data), layer))
    layer.weight.requires_grad_(False)
    try:
        yield
    finally:
        layer.weight.requires_grad_(True)


def whitening_filters(batches: Iterable[Tensor], layer: nn.Conv2d) -> Tensor:
    """Weights of the layer's shape from batches of images (N, C, H, W)."""
    size = layer.weight[0].numel()
    count, total, products = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
    for images in batches:
        patches = functional.unfold(images, cast(Any, layer.kernel_size)).transpose(1, 2).flatten(0, 1).double()
        count += len(patches)
        total += patches.sum(0)
        products += patches.T @ patches
    covariance = (products - torch.outer(total, total) / count) / (count - 1)
    variances, components = cast(Any, torch.linalg).eigh(covariance)
    filters: Tensor = (components / (variances + RIDGE).sqrt()).T.flip(0)
    if layer.out_channels == 2 * len(filters):
        filters = torch.cat([filters, -filters])
    return filters.reshape(layer.weight.shape).to(layer.weight)


def _images(data: Dataset) -> Iterator[Tensor]:
    for batch in islice(data.train.batches(BATCH), BATCHES):
        (images, *_) = batch.inputs.values()
        yield images.float().cpu()


def _first_convolution(student: nn.Module, data: Dataset) -> nn.Conv2d:
    (shape, *others) = data.input_shapes.values()
    layer = next((module for module in student.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None or others or len(shape) != 3 or layer.in_channels != shape[0] or layer.groups > 1:
        raise StageError("`first_layer: whitened` needs samples of one image, and a student that begins with a Conv2d")
    components = layer.weight[0].numel()
    if layer.out_channels not in (components, 2 * components):
        size = "x".join(map(str, layer.kernel_size))
        raise StageError(
            f"`first_layer: whitened`: patches of {layer.in_channels} channels and {size} pixels have {components} "
            f"components, so the student's first convolution must have {components} or {2 * components} channels, not "
            f"{layer.out_channels}"
        )
    return layer
