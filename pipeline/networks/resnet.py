"""The residual networks of He et al. 2015 (arXiv:1512.03385, section 4.2) for small images."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from .network import Image, ImageNetwork, initialize, rounded

Shortcut = Literal["conv", "pad"]


class ResNet(ImageNetwork, frozen=True, extra="forbid"):
    """A residual network for small images: three stages of basic blocks (arXiv:1512.03385, section 4.2)."""

    name: Literal["resnet"] = "resnet"
    depth: int = 20
    """Weighted layers: 6 n + 2 for n blocks a stage, such as 8, 14, 20, 32, 56."""
    width: Annotated[int, Field(ge=1)] = 16
    """Channels of the first stage; the second and third have 2 and 4 times as many."""
    stem: Annotated[int, Field(ge=1)] | None = None
    """Channels of the first convolution; like `width` where not given. ResNet-8x4 has depth 8, width 64 and stem 32."""
    stride: Literal[1, 2] = 1
    """Of the first stage: with 2, all blocks run on a quarter of the positions, and twice the channels cost as much."""
    shortcut: Shortcut = "conv"
    """Where the shape changes: a 1x1 convolution, or zero channels without parameters."""

    @field_validator("depth")
    @classmethod
    def _depth_of_whole_blocks(cls, depth: int) -> int:
        if depth < 8 or depth % 6 != 2:
            nearest = 6 * rounded((depth - 2) / 6, 1) + 2
            raise ValueError(f"a depth is 6 n + 2, such as 8, 14, 20, 32 or 56; the nearest is {nearest}")
        return depth

    @model_validator(mode="after")
    def _pads_add_channels(self) -> Self:
        if self.shortcut == "pad" and self.stem is not None and self.stem > self.width:
            raise ValueError(
                f"`shortcut: pad` only adds channels, but `stem` {self.stem} is more than `width` {self.width}; "
                "use `shortcut: conv`"
            )
        return self

    @property
    def num_blocks(self) -> int:
        """In each stage."""
        return (self.depth - 2) // 6

    def build(self, image: Image, num_classes: int) -> "ResNetModule":
        """Takes images of any size."""
        return ResNetModule(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """Channels are rounded to multiples of 8, blocks to whole ones."""
        scaled = {"depth": 6 * rounded(self.num_blocks * depth, 1) + 2}
        if width != 1:
            scaled["width"] = rounded(self.width * width, 8)
            if self.stem is not None:
                scaled["stem"] = rounded(self.stem * width, 8)
        return self.model_copy(update=scaled)


class PadShortcut(nn.Module):
    """Option A of the paper, without parameters: every `stride`-th row and column, zero channels before and after."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, before + C + after, H / stride, W / stride), fractions rounded up."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; where the shape changes, so does the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = changing_shortcut(in_channels, out_channels, stride, shortcut)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))


def changing_shortcut(in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> nn.Module:
    """A shortcut from one shape to another; `pad` only adds channels."""
    if shortcut == "pad":
        added = out_channels - in_channels
        return PadShortcut(added // 2, added - added // 2, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class ResNetModule(nn.Module):
    """Three stages of basic blocks of `width`, 2 and 4 times `width` channels, each halving the resolution."""

    def __init__(self, settings: ResNet, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width, num_blocks, shortcut = settings.width, settings.num_blocks, settings.shortcut
        stem = width if settings.stem is None else settings.stem
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, width, num_blocks, settings.stride, shortcut)
        self.layer2 = _stage(width, 2 * width, num_blocks, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, num_blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * width, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    blocks = [BasicBlock(in_channels, out_channels, stride, shortcut)]
    blocks += [BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)
