"""The vision transformers of Dosovitskiy et al. 2020 (arXiv:2010.11929) for small images."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ModelError
from .encoder import Block, initialize_evenly
from .network import Image, ImageNetwork, rounded


class ViT(ImageNetwork, frozen=True, extra="forbid"):
    """A vision transformer encoder for small images, whose tokens are averaged at the end (arXiv:2010.11929)."""

    name: Literal["vit"] = "vit"
    patch: Annotated[int, Field(ge=1)] = 4
    """Height and width of the squares that become tokens; the image must divide into them."""
    depth: Annotated[int, Field(ge=1)] = 6
    """Blocks."""
    width: Annotated[int, Field(ge=1)] = 192
    """Features of a token; a multiple of `heads`."""
    heads: Annotated[int, Field(ge=1)] = 3
    """Of the attention in each block."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """How many times wider the blocks' hidden layers are than the tokens; rounded to multiples of 8."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"`width` {self.width} does not divide into {self.heads} `heads`; "
                f"the nearest is {rounded(self.width / self.heads, 1) * self.heads}"
            )
        return self

    def build(self, image: Image, num_classes: int) -> "ViTModule":
        """ModelError where the image does not divide into patches."""
        channels, height, width = image
        if height % self.patch or width % self.patch:
            raise ModelError(
                f"vit cuts images into squares of {self.patch} pixels (`patch`), "
                f"which do not fill images of {height} by {width}; choose a `patch` that divides both"
            )
        return ViTModule(self, channels, (height // self.patch) * (width // self.patch), num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """The same heads, narrower or wider: the width is rounded to a multiple of 8 and of `heads`."""
        scaled = {"depth": rounded(self.depth * depth, 1)}
        if width != 1:
            scaled["width"] = rounded(self.width * width, math.lcm(8, self.heads))
        return self.model_copy(update=scaled)


class TokenMean(nn.Module):
    """The mean of an image's tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, width)."""
        return x.mean(1)


class ViTModule(nn.Module):
    """Patches to tokens with learned positions, blocks, and a linear layer on the mean of the normed tokens."""

    def __init__(self, settings: ViT, in_channels: int, num_tokens: int, num_classes: int) -> None:
        super().__init__()
        width, hidden = settings.width, rounded(settings.width * settings.mlp_ratio, 8)
        self.patches = nn.Conv2d(in_channels, width, settings.patch, settings.patch)
        self.positions = nn.Parameter(torch.empty(1, num_tokens, width))
        self.blocks = nn.Sequential(*(Block(width, settings.heads, hidden) for _ in range(settings.depth)))
        self.norm = nn.LayerNorm(width)
        self.pool = TokenMean()
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.positions, std=0.02)
        initialize_evenly(self.modules())

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to logits (B, num_classes)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.pool(self.norm(self.blocks(tokens))))
