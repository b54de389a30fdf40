"""The inverted residual networks of Sandler et al. 2018 (arXiv:1801.04381) for small images."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from .network import Image, ImageNetwork, initialize, rounded

STEM = 32
HEAD = 1280
"""Channels of the last convolution; narrow networks keep them, wide ones have more."""


class MobileNetV2(ImageNetwork, frozen=True, extra="forbid"):
    """A network of depthwise convolutions between linear bottlenecks, MobileNet V2 (arXiv:1801.04381)."""

    name: Literal["mobilenet_v2"] = "mobilenet_v2"
    width: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the channels between the blocks; rounded to multiples of 4."""
    expansion: Annotated[int, Field(ge=1)] = 6
    """How many times wider the blocks are inside."""
    stem_stride: Literal[1, 2] = 2
    """Of the first convolution: 2 for 32 pixels leaves maps of 2 by 2 at the end, 1 costs four times as much."""

    def build(self, image: Image, num_classes: int) -> "MobileNetV2Module":
        """Takes images of any size."""
        return MobileNetV2Module(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """ModelError for another depth."""
        self.of_fixed_depth(depth)
        return self.model_copy(update={"width": self.width * width})

    def channels(self, channels: int) -> int:
        """As many in a network of this width."""
        return rounded(channels * self.width, 4)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without an activation; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _convolution(in_channels, inner, 1)
        self.depthwise = _convolution(inner, inner, 3, stride, groups=inner)
        self.project = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        inner = self.bn(self.project(self.depthwise(self.expand(x))))
        return x + inner if self.residual else inner


class MobileNetV2Module(nn.Module):
    """Four stages; all but the first begin by halving the resolution, which the paper does in one more place."""

    def __init__(self, settings: MobileNetV2, in_channels: int, num_classes: int) -> None:
        super().__init__()
        stem, first, last = (settings.channels(channels) for channels in (STEM, 16, 320))
        head = max(settings.channels(HEAD), HEAD)
        self.stem = _convolution(in_channels, stem, 3, settings.stem_stride)
        self.layer1 = nn.Sequential(InvertedResidual(stem, first, 1, 1), *_blocks(settings, 16, 1, (24, 24)))
        self.layer2 = nn.Sequential(*_blocks(settings, 24, 2, (32, 32, 32)))
        self.layer3 = nn.Sequential(*_blocks(settings, 32, 2, (64, 64, 64, 64, 96, 96, 96)))
        self.layer4 = nn.Sequential(*_blocks(settings, 96, 2, (160, 160, 160, 320)))
        self.head = _convolution(last, head, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(image)))))
        return self.linear(torch.flatten(self.pool(self.head(x)), 1))


def _blocks(
    settings: MobileNetV2, in_channels: int, stride: int, out_channels: tuple[int, ...]
) -> Iterator[InvertedResidual]:
    """One for each count of channels, before the width is applied; the first one has the stride."""
    for out in out_channels:
        yield InvertedResidual(settings.channels(in_channels), settings.channels(out), stride, settings.expansion)
        in_channels, stride = out, 1


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6())
