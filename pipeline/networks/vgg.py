"""The plain networks of Simonyan & Zisserman 2014 (arXiv:1409.1556) with batch norm, for small images."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from .network import Image, ImageNetwork, convolutions, initialize, nearest_depth, rounded

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Of each stage, by depth."""
CHANNELS = (64, 128, 256, 512, 512)
"""Of each stage."""
LARGE = 64
"""From this height or width on, the image is halved once more, so that the last stages run on small maps."""


class VGG(ImageNetwork, frozen=True, extra="forbid"):
    """A plain network of 3x3 convolutions with batch norm and max pooling (arXiv:1409.1556), with one linear layer."""

    name: Literal["vgg"] = "vgg"
    depth: Literal[8, 11, 13, 16, 19] = 8
    """Weighted layers where three are linear, as in the paper: three more than there are convolutions."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the channels of the five stages, 64 to 512; rounded to multiples of 8."""

    def build(self, image: Image, num_classes: int) -> "VGGModule":
        """Takes images of 8 pixels and more."""
        return VGGModule(self, image, num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """The depth is the nearest of those that there are."""
        scaled = {"width": self.width * width, "depth": nearest_depth(self.depth * depth, tuple(CONVOLUTIONS))}
        return self.model_copy(update=scaled)


class VGGModule(nn.Module):
    """Five stages at full, half, quarter and eighth resolution; the last two share one where the image is small."""

    def __init__(self, settings: VGG, image: Image, num_classes: int) -> None:
        super().__init__()
        widths = [image[0], *(rounded(channels * settings.width, 8) for channels in CHANNELS)]
        counts = CONVOLUTIONS[settings.depth]
        self.layer1 = _stage(widths[0], widths[1], counts[0])
        self.pool1 = nn.MaxPool2d(2)
        self.layer2 = _stage(widths[1], widths[2], counts[1])
        self.pool2 = nn.MaxPool2d(2)
        self.layer3 = _stage(widths[2], widths[3], counts[2])
        self.pool3 = nn.MaxPool2d(2)
        self.layer4 = _stage(widths[3], widths[4], counts[3])
        self.pool4 = nn.MaxPool2d(2) if min(image[1:]) >= LARGE else nn.Identity()
        self.layer5 = _stage(widths[4], widths[5], counts[4])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[5], num_classes)
        initialize(self)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = self.pool2(self.layer2(self.pool1(self.layer1(image))))
        x = self.pool4(self.layer4(self.pool3(self.layer3(x))))
        return self.linear(torch.flatten(self.pool(self.layer5(x)), 1))


def _stage(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    # The bias does nothing before a batch norm, but the networks that others compare with have it.
    return convolutions(in_channels, [out_channels] * count, bias=True)
