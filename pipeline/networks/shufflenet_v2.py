"""The split and shuffled networks of Ma et al. 2018 (arXiv:1807.11164) for small images."""

from collections.abc import Iterator
from typing import Literal, Self

import torch
from pydantic import field_validator
from torch import Tensor, nn

from .network import Image, ImageNetwork, initialize
from .shufflenet_v1 import ChannelShuffle

STEM = 24
BLOCKS = (4, 8, 4)
"""Of each stage."""
CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
"""Of the three stages and of the last convolution, by width."""


class ShuffleNetV2(ImageNetwork, frozen=True, extra="forbid"):
    """A network whose blocks change half of the channels and shuffle them all, ShuffleNet V2 (arXiv:1807.11164)."""

    name: Literal["shufflenet_v2"] = "shufflenet_v2"
    width: float = 1.0
    """0.5, 1, 1.5 or 2, about how many times the channels of the network of width 1 the stages have."""

    @field_validator("width")
    @classmethod
    def _width_of_the_paper(cls, width: float) -> float:
        if width not in CHANNELS:
            raise ValueError(f"a width is 0.5, 1, 1.5 or 2; the nearest is {_nearest(width):g}")
        return width

    def build(self, image: Image, num_classes: int) -> "ShuffleNetV2Module":
        """Takes images of any size."""
        return ShuffleNetV2Module(self, image[0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """The width is the nearest of those that there are. ModelError for another depth."""
        self.of_fixed_depth(depth)
        return self.model_copy(update={"width": _nearest(self.width * width)})


def _nearest(width: float) -> float:
    return min(CHANNELS, key=lambda each: abs(each - width))


class SplitBlock(nn.Module):
    """Passes half of the channels on, changes the other half, and shuffles both together."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.changed = _changing(channels // 2, channels // 2, 1)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        kept, changed = x.chunk(2, 1)
        return self.shuffle(torch.cat([kept, self.changed(changed)], 1))


class HalvingBlock(nn.Module):
    """Changes all channels in two ways, each giving half of the new ones at half the resolution, and shuffles them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.filtered = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 2, padding=1, groups=in_channels, bias=False),
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )
        self.changed = _changing(in_channels, half, 2)
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H / 2, W / 2)."""
        return self.shuffle(torch.cat([self.filtered(x), self.changed(x)], 1))


def _changing(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """1x1, depthwise 3x3 without an activation, 1x1."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, groups=out_channels, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class ShuffleNetV2Module(nn.Module):
    """Three stages at half, quarter and eighth resolution, between two 1x1 convolutions."""

    def __init__(self, settings: ShuffleNetV2, in_channels: int, num_classes: int) -> None:
        super().__init__()
        first, second, third, last = CHANNELS[settings.width]
        self.conv1 = nn.Conv2d(in_channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu1 = nn.ReLU()
        self.layer1 = nn.Sequential(*_blocks(STEM, first, BLOCKS[0]))
        self.layer2 = nn.Sequential(*_blocks(first, second, BLOCKS[1]))
        self.layer3 = nn.Sequential(*_blocks(second, third, BLOCKS[2]))
        self.conv2 = nn.Conv2d(third, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(last, num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.relu1(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


def _blocks(in_channels: int, out_channels: int, count: int) -> Iterator[nn.Module]:
    yield HalvingBlock(in_channels, out_channels)
    for _ in range(count - 1):
        yield SplitBlock(out_channels)
