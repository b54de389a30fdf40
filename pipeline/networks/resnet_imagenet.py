"""The residual networks of He et al. 2015 (arXiv:1512.03385, section 4.1) for ImageNet, and for small images too."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from .network import Image, ImageNetwork, initialize, nearest_depth, rounded
from .resnet import BasicBlock, changing_shortcut

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Of each stage, by depth."""
BOTTLENECKS = 50
"""From this depth on, blocks are bottlenecks."""
EXPANSION = 4
"""How many times wider a bottleneck is outside."""


class ImageNetResNet(ImageNetwork, frozen=True, extra="forbid"):
    """A residual network of four stages, ResNet-18 to ResNet-152 (arXiv:1512.03385, section 4.1)."""

    name: Literal["resnet_imagenet"] = "resnet_imagenet"
    depth: Literal[18, 34, 50, 101, 152] = 18
    """Weighted layers; from 50 on, in bottlenecks of 1x1, 3x3 and 1x1 convolutions."""
    width: Annotated[int, Field(ge=1)] = 64
    """Channels of the first stage's 3x3 convolutions; each later stage has twice as many as the one before."""
    stem: Literal["small", "large"] = "small"
    """The first convolution: 3x3 for images such as CIFAR's, or 7x7 with stride 2 and max pooling for ImageNet's."""

    def build(self, image: Image, num_classes: int) -> "ImageNetResNetModule":
        """Takes images of any size."""
        return ImageNetResNetModule(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """Channels are rounded to multiples of 8; the depth is the nearest of those that there are."""
        scaled = {"depth": nearest_depth(self.depth * depth, tuple(BLOCKS))}
        if width != 1:
            scaled["width"] = rounded(self.width * width, 8)
        return self.model_copy(update=scaled)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; where the shape changes, so does the shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        # The stride is here and not in the first convolution, where it would throw three of four positions away.
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = changing_shortcut(in_channels, out_channels, stride, "conv")
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, 4 * channels, H / stride, W / stride)."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        return self.relu3(self.bn3(self.conv3(inner)) + self.shortcut(x))


class ImageNetResNetModule(nn.Module):
    """Four stages; the first keeps the stem's resolution, each later one halves it."""

    def __init__(self, settings: ImageNetResNet, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width, counts = settings.width, BLOCKS[settings.depth]
        outside = EXPANSION if settings.depth >= BOTTLENECKS else 1
        small = settings.stem == "small"
        self.conv1 = nn.Conv2d(in_channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(*_blocks(width, width, counts[0], 1, outside))
        self.layer2 = nn.Sequential(*_blocks(width * outside, 2 * width, counts[1], 2, outside))
        self.layer3 = nn.Sequential(*_blocks(2 * width * outside, 4 * width, counts[2], 2, outside))
        self.layer4 = nn.Sequential(*_blocks(4 * width * outside, 8 * width, counts[3], 2, outside))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(8 * width * outside, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(torch.flatten(self.pool(x), 1))


def _blocks(in_channels: int, channels: int, count: int, stride: int, outside: int) -> Iterator[nn.Module]:
    for _ in range(count):
        if outside == 1:
            yield BasicBlock(in_channels, channels, stride, "conv")
        else:
            yield Bottleneck(in_channels, channels, stride)
        in_channels, stride = channels * outside, 1
