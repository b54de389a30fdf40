"""Networks of convolutions one after another, of any widths, for small images and for engines of few operators."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import ModelError
from .network import Image, ImageNetwork, convolutions, initialize, rounded

Width = Annotated[int, Field(ge=1)]
Stage = Annotated[tuple[Width, ...], Field(min_length=1)]
Stages = Annotated[tuple[Stage, ...], Field(min_length=1)]

STEM_WITHOUT_PADDING = 2
"""The even kernel, which no padding would centre."""


class Plain(ImageNetwork, frozen=True, extra="forbid"):
    """Stages of 3x3 convolutions of the widths you give, with max pooling between and no shortcuts (arXiv:2404.00498).

    With `stem_kernel: 2` it has the shape of the networks that learn CIFAR-10 in the fewest operations (Jordan 2024, in
    ReLUs); `first_layer: whitened` of `distill` is that paper's first layer. As there, the first filters of every other
    layer begin as the identity (DiracNets, arXiv:1706.00388), which takes the place of shortcuts. At batch 1 each
    operator costs some microseconds whatever its size, so few and wide ones run faster than many narrow ones of as many
    multiply-accumulates.
    """

    name: Literal["plain"] = "plain"
    stem: Width = 32
    """Channels of the first convolution, which belongs to the first stage."""
    stem_kernel: Literal[2, 3] = 3
    """Of the first convolution: 3, or 2 without padding, which makes the map one row and one column smaller."""
    stages: Stages = ((64,), (64, 192), (192, 192), (192,))
    """The channels of each convolution after the first, stage by stage: `[[64], [128, 128]]`. A stage works at half the
    resolution of the one before."""

    def build(self, image: Image, num_classes: int) -> "PlainModule":
        """ModelError where nothing would be left of the image after the last pool."""
        size = min(image[1:]) - (self.stem_kernel == STEM_WITHOUT_PADDING)
        if size < 2 ** (len(self.stages) - 1):
            raise ModelError(
                f"plain: {len(self.stages)} stages halve an image of {image[1]}x{image[2]} "
                f"{len(self.stages) - 1} times, which leaves no pixel; give fewer `stages`"
            )
        return PlainModule(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """Channels are rounded to multiples of 8; of each stage its last convolutions go, or the last one repeats."""
        stem, stages = self.stem, tuple(_of_depth(widths, depth) for widths in self.stages)
        if width != 1:
            stem = rounded(stem * width, 8)
            stages = tuple(tuple(rounded(channels * width, 8) for channels in widths) for widths in stages)
        return self.model_copy(update={"stem": stem, "stages": stages})


class PlainModule(nn.Module):
    """Stages of convolutions, each but the first behind a max pool; mean pooling and one linear layer."""

    def __init__(self, settings: Plain, in_channels: int, num_classes: int) -> None:
        super().__init__()
        padding = 0 if settings.stem_kernel == STEM_WITHOUT_PADDING else 1
        self.conv1 = nn.Conv2d(in_channels, settings.stem, settings.stem_kernel, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(settings.stem)
        self.relu = nn.ReLU()
        self.num_stages = len(settings.stages)
        channels = settings.stem
        for number, widths in enumerate(settings.stages, start=1):
            if number > 1:
                self.add_module(f"pool{number}", nn.MaxPool2d(2))
            self.add_module(f"layer{number}", convolutions(channels, widths, bias=False))
            channels = widths[-1]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)
        for number in range(1, self.num_stages + 1):
            _hand_on(self.get_submodule(f"layer{number}"))

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(image)))
        for number in range(1, self.num_stages + 1):
            if number > 1:
                x = self.get_submodule(f"pool{number}")(x)
            x = self.get_submodule(f"layer{number}")(x)
        return self.linear(torch.flatten(self.pool(x), 1))


@torch.no_grad()
def _hand_on(stage: nn.Module) -> None:
    """Let the first filters of each layer hand its inputs on, as shortcuts would; others keep their random weights."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels <= layer.out_channels:
            nn.init.dirac_(layer.weight[: layer.in_channels])


def _of_depth(widths: tuple[int, ...], depth: float) -> tuple[int, ...]:
    count = rounded(len(widths) * depth, 1)
    return (*widths, *[widths[-1]] * max(count - len(widths), 0))[:count]
