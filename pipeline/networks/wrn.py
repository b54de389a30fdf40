"""The wide residual networks of Zagoruyko & Komodakis 2016 (arXiv:1605.07146) for small images."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from .network import Image, ImageNetwork, initialize, rounded

STEM = 16
"""Channels of the first convolution, and of the first stage of a network that is not widened."""


class WideResNet(ImageNetwork, frozen=True, extra="forbid"):
    """A wide residual network for small images: three stages of pre-activation blocks (arXiv:1605.07146)."""

    name: Literal["wrn"] = "wrn"
    depth: int = 16
    """Convolutions: 6 n + 4 for n blocks a stage, such as 10, 16, 22, 28, 40."""
    widen: Annotated[float, Field(gt=0)] = 2.0
    """The stages have 16, 32 and 64 times as many channels, rounded to multiples of 8."""

    @field_validator("depth")
    @classmethod
    def _depth_of_whole_blocks(cls, depth: int) -> int:
        if depth < 10 or depth % 6 != 4:
            nearest = 6 * rounded((depth - 4) / 6, 1) + 4
            raise ValueError(f"a depth is 6 n + 4, such as 10, 16, 22, 28 or 40; the nearest is {nearest}")
        return depth

    @property
    def num_blocks(self) -> int:
        """In each stage."""
        return (self.depth - 4) // 6

    def build(self, image: Image, num_classes: int) -> "WideResNetModule":
        """Takes images of any size."""
        return WideResNetModule(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """Blocks are rounded to whole ones."""
        scaled = {"widen": self.widen * width, "depth": 6 * rounded(self.num_blocks * depth, 1) + 4}
        return self.model_copy(update=scaled)


class PreActivationBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice; where the shape changes, the shortcut is a convolution after the ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.changes = stride != 1 or in_channels != out_channels
        self.shortcut: nn.Module = nn.Identity()
        if self.changes:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        inner = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return inner + self.shortcut(activated if self.changes else x)


class WideResNetModule(nn.Module):
    """Three stages of pre-activation blocks at full, half and quarter resolution."""

    def __init__(self, settings: WideResNet, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width, num_blocks = STEM * settings.widen, settings.num_blocks
        first, second, third = (rounded(times * width, 8) for times in (1, 2, 4))
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.layer1 = _stage(STEM, first, num_blocks, 1)
        self.layer2 = _stage(first, second, num_blocks, 2)
        self.layer3 = _stage(second, third, num_blocks, 2)
        self.bn = nn.BatchNorm2d(third)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(image))))
        return self.linear(torch.flatten(self.pool(self.relu(self.bn(x))), 1))


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    blocks = [PreActivationBlock(in_channels, out_channels, stride)]
    blocks += [PreActivationBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)
