"""The depthwise separable network for keyword spotting of Zhang et al. 2017 (Hello Edge, arXiv:1711.07128)."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from .network import Image, ImageNetwork, initialize, rounded


class DSCNN(ImageNetwork, frozen=True, extra="forbid"):
    """A small network of depthwise separable convolutions for maps of sound, DS-CNN (arXiv:1711.07128)."""

    name: Literal["ds_cnn"] = "ds_cnn"
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of all layers: 64 in the paper's small network, 172 and 276 in the larger ones."""
    depth: Annotated[int, Field(ge=1)] = 4
    """Depthwise separable blocks behind the first convolution: 4, 4 and 5 in the paper."""
    stride: Literal[1, 2] = 2
    """Of the first convolution, which is 10 frames by 4 bands."""

    def build(self, image: Image, num_classes: int) -> "DSCNNModule":
        """Takes maps of any size, bands by frames."""
        return DSCNNModule(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """Channels are rounded to multiples of 8, blocks to whole ones."""
        scaled = {"depth": rounded(self.depth * depth, 1)}
        if width != 1:
            scaled["width"] = rounded(self.width * width, 8)
        return self.model_copy(update=scaled)


class SeparableBlock(nn.Module):
    """A 3x3 filter for each channel, then a 1x1 convolution; both with norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.relu2(self.bn2(self.pointwise(self.relu1(self.bn1(self.depthwise(x))))))


class DSCNNModule(nn.Module):
    """All blocks at the one resolution that the first convolution leaves."""

    def __init__(self, settings: DSCNN, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width = settings.width
        self.conv1 = nn.Conv2d(in_channels, width, (4, 10), settings.stride, padding=(1, 4), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(SeparableBlock(width) for _ in range(settings.depth)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Maps (B, in_channels, bands, frames) to logits (B, num_classes)."""
        x = self.layer1(self.relu(self.bn1(self.conv1(image))))
        return self.linear(torch.flatten(self.pool(x), 1))
