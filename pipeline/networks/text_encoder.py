"""Transformer encoders for texts (Vaswani et al. 2017, arXiv:1706.03762; Devlin et al. 2019, arXiv:1810.04805)."""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ModelError
from ..lengths import MASK
from .encoder import Block, Norm, initialize_evenly
from .network import Network, Shapes, rounded, told

TOKENS = "input_ids"
"""What the tokens' numbers are called among the inputs."""


class TextEncoder(Network, frozen=True, extra="forbid"):
    """A transformer encoder of texts of any length, whose tokens are averaged at the end (arXiv:1706.03762)."""

    name: Literal["text_encoder"] = "text_encoder"
    depth: Annotated[int, Field(ge=1)] = 6
    """Blocks."""
    width: Annotated[int, Field(ge=1)] = 256
    """Features of a token; a multiple of `heads`."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Of the attention in each block."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """How many times wider the blocks' hidden layers are than the tokens; rounded to multiples of 8."""
    norm: Norm = "before"
    """`before` attention and hidden layer, which trains from scratch most easily, or `after` what they add, as BERT."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of a block's features that a training step leaves out."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"`width` {self.width} does not divide into {self.heads} `heads`; "
                f"the nearest is {rounded(self.width / self.heads, 1) * self.heads}"
            )
        return self

    def build_for(self, shapes: Shapes, num_classes: int, vocabulary: int = 0) -> "TextEncoderModule":
        """ModelError where a sample is anything but tokens and their mask, or their number is not known."""
        if list(shapes) != [TOKENS, MASK] or any(len(shape) != 1 for shape in shapes.values()):
            raise ModelError(
                f"{self.name} takes the tokens of a text as {TOKENS} and {MASK}, as `source: text` gives them, but the "
                f"data gives {told(shapes)}"
            )
        if not vocabulary:
            raise ModelError(
                f"{self.name} must know how many tokens there are, which only `source: text` says; take that source, "
                "or a model of your own, `my_models.py:make`"
            )
        return TextEncoderModule(self, vocabulary, shapes[TOKENS][0], num_classes)

    def scaled(self, *, width: float, depth: float) -> Self:
        """The same heads, narrower or wider: the width is rounded to a multiple of 8 and of `heads`."""
        scaled = {"depth": rounded(self.depth * depth, 1)}
        if width != 1:
            scaled["width"] = rounded(self.width * width, math.lcm(8, self.heads))
        return self.model_copy(update=scaled)


class Positions(nn.Module):
    """One learned vector for each place in a text."""

    def __init__(self, longest: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(longest, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """For token numbers (B, N) the vectors of N places, (N, width)."""
        return self.table(torch.arange(tokens.shape[1], device=tokens.device))


class MaskedMean(nn.Module):
    """The mean of a text's tokens."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, N, width) and the mask (B, N), 1 for tokens, to (B, width)."""
        seen = mask.unsqueeze(-1).to(x.dtype)
        return (x * seen).sum(1) / seen.sum(1)


class TextEncoderModule(nn.Module):
    """Tokens and places to vectors, blocks, and a linear layer on the mean of the normed tokens."""

    def __init__(self, settings: TextEncoder, vocabulary: int, longest: int, num_classes: int) -> None:
        super().__init__()
        width, hidden = settings.width, rounded(settings.width * settings.mlp_ratio, 8)
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = Positions(longest, width)
        self.blocks = nn.ModuleList(
            Block(width, settings.heads, hidden, norm=settings.norm, dropout=settings.dropout)
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.pool = MaskedMean()
        self.head = nn.Linear(width, num_classes)
        initialize_evenly(self.modules())
        for table in (self.tokens, self.positions.table):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token numbers and mask, both (B, N), to logits (B, num_classes)."""
        hidden = (attention_mask == 0)[:, None, None, :]
        x = self.tokens(input_ids) + self.positions(input_ids)
        for block in self.blocks:
            x = block(x, hidden)
        return self.head(self.pool(self.norm(x), attention_mask))
