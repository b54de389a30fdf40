"""The shuffled grouped convolutions of Zhang et al. 2017 (arXiv:1707.01083) for small images."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from .network import Image, ImageNetwork, initialize, rounded

GROUPS = 3
STEM = 24
CHANNELS = 240
"""Of the first stage, for three groups; the second and third have 2 and 4 times as many."""
BLOCKS = (4, 8, 4)
"""Of each stage."""


class ShuffleNetV1(ImageNetwork, frozen=True, extra="forbid"):
    """A network of grouped 1x1 convolutions whose channels are shuffled, ShuffleNet V1 (arXiv:1707.01083)."""

    name: Literal["shufflenet_v1"] = "shufflenet_v1"
    width: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the channels of the three stages, 240, 480 and 960; the first is rounded to a multiple of 24."""

    def build(self, image: Image, num_classes: int) -> "ShuffleNetV1Module":
        """Takes images of any size."""
        return ShuffleNetV1Module(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """ModelError for another depth."""
        self.of_fixed_depth(depth)
        return self.model_copy(update={"width": self.width * width})


class ChannelShuffle(nn.Module):
    """Deals channels out to the groups in turn, so that the next grouped layer sees some of each."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape: channel j of group i goes to place j * groups + i."""
        dealt = x.reshape(-1, self.groups, x.shape[1] // self.groups, *x.shape[2:])
        return dealt.transpose(1, 2).flatten(1, 2)


class ShuffleBlock(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or appended to it where it is halved."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        new = out_channels if stride == 1 else out_channels - in_channels
        inner = new // 4
        # The first block of all reads too few channels for groups.
        self.conv1 = nn.Conv2d(in_channels, inner, 1, groups=1 if in_channels == STEM else GROUPS, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.shuffle = ChannelShuffle(GROUPS)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, new, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(new)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride, padding=1)
        self.appends = stride != 1
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / stride, W / stride)."""
        inner = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        inner = self.bn3(self.conv3(self.bn2(self.conv2(inner))))
        x = self.shortcut(x)
        return self.relu2(torch.cat([inner, x], 1) if self.appends else inner + x)


class ShuffleNetV1Module(nn.Module):
    """Three stages at half, quarter and eighth resolution, after one 1x1 convolution."""

    def __init__(self, settings: ShuffleNetV1, in_channels: int, num_classes: int) -> None:
        super().__init__()
        # A quarter of the channels that a block appends to its input must be some, and divide into the groups.
        first = max(rounded(CHANNELS * settings.width, 8 * GROUPS), 2 * STEM)
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*_blocks(STEM, first, BLOCKS[0]))
        self.layer2 = nn.Sequential(*_blocks(first, 2 * first, BLOCKS[1]))
        self.layer3 = nn.Sequential(*_blocks(2 * first, 4 * first, BLOCKS[2]))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(4 * first, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


def _blocks(in_channels: int, out_channels: int, count: int) -> Iterator[ShuffleBlock]:
    yield ShuffleBlock(in_channels, out_channels, 2)
    for _ in range(count - 1):
        yield ShuffleBlock(out_channels, out_channels, 1)
