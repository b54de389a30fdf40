"""A small network of convolutions that brings maps to other channels."""

from torch import nn


class Bottleneck(nn.Sequential):
    """1×1, 3×3 and 1×1 convolutions, the inner ones of `out_channels / factor` channels, each with norm and ReLU.

    Maps (B, in_channels, H, W) to (B, out_channels, H, W).

    The projector of SimKD, Chen et al. 2022, arXiv 2203.14001, §3.2.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        inner = max(out_channels // factor, 1)
        super().__init__(
            nn.Conv2d(in_channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
