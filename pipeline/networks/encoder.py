"""What transformer encoders are made of: attention in several heads, and blocks of it with a hidden layer."""

import math
from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["before", "after"]
"""Where a block's norms stand: before attention and hidden layer, or after what they add (Vaswani et al. 2017)."""

HIDDEN_SCORE = -1e4
"""The score of a key that is no token: its exponential is 0 in float32 and float16, and no number is infinite."""


class Attention(nn.Module):
    """Self-attention in several heads, its probabilities the output of `softmax`, of shape (B, heads, N, N)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        # A bias of the keys adds the same to all of a query's scores, which the softmax takes out again.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Tokens (B, N, width) to the same shape; where `hidden`, of shape (B, 1, 1, N), is true, nobody looks."""
        query, key, value = (self._by_head(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if hidden is not None:
            scores = scores.masked_fill(hidden, HIDDEN_SCORE)
        return self.project((self.softmax(scores) @ value).transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, width) to (B, heads, N, width / heads)."""
        return x.reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Attention, then a hidden layer, each added to its input, with a norm before it or after the sum."""

    def __init__(self, width: int, heads: int, hidden: int, *, norm: Norm = "before", dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.project = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Tokens (B, N, width) to the same shape; `hidden` as in `Attention`."""
        if self.norm == "before":
            x = x + self._dropped(self.attention(self.norm1(x), hidden))
            return x + self._dropped(self._fed_forward(self.norm2(x)))
        x = self.norm1(x + self._dropped(self.attention(x, hidden)))
        return self.norm2(x + self._dropped(self._fed_forward(x)))

    def _fed_forward(self, x: Tensor) -> Tensor:
        return self.project(self.gelu(self.expand(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x


def initialize_evenly(modules: Iterable[nn.Module]) -> None:
    """First weights that keep activations' size without Kaiming's factor: no ReLU is behind most of these layers."""
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison] - keys have none
                nn.init.zeros_(module.bias)
