"""Small untrained networks of the families that people bring, written as their papers put them together.

Images are 3×32×32, texts are 16 tokens of a vocabulary of 50 with a mask, series are 12 steps of 8 numbers; classifiers
have 5 classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_CLASSES = 5
IMAGE = {"image": (3, 32, 32)}
SERIES = {"series": (12, 8)}
VOCABULARY = 50
TOKENS = 16


def block(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        act(),
    )


class Head(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(x).flatten(1))


class DenseLayer(nn.Module):
    """Norm and ReLU before each convolution; what it finds is appended to what it was given (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(new)))], 1)


class SqueezeExcite(nn.Module):
    """Gates each channel by what all of them say on average (Hu et al. 2018)."""

    def __init__(self, channels: int, inner: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze, self.inner = nn.Conv2d(channels, max(8, channels // 4), 1), inner()
        self.excite, self.gate = nn.Conv2d(max(8, channels // 4), channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.excite(self.inner(self.squeeze(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Widen, depthwise, squeeze-excite, narrow (Sandler et al. 2018; Howard et al. 2019; Tan and Le 2019)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, act: type[nn.Module], gate: type[nn.Module] | None
    ) -> None:
        super().__init__()
        hidden = 3 * inputs
        self.expand = block(inputs, hidden, 1, act=act)
        self.depthwise = block(hidden, hidden, 3, stride=stride, groups=hidden, act=act)
        self.excite = nn.Identity() if gate is None else SqueezeExcite(hidden, act, gate)
        self.project = block(hidden, outputs, 1, act=nn.Identity)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.adds else y


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, LayerNorm, two linear layers with GELU, and a scale per channel (Liu et al. 2022)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.expand, self.gelu = nn.Linear(channels, 4 * channels), nn.GELU()
        self.project, self.scale = nn.Linear(4 * channels, channels), nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.project(self.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class SelfAttention(nn.Module):
    """Multi-head attention with one linear layer for query, key and value, or three; masks keys where given."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.query(x), self.key(x), self.value(x))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores + (1 - mask[:, None, None, :].float()) * -1e4
        return self.project((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class OneOperatorAttention(SelfAttention):
    """The same, with products, scale, mask and softmax as torch's one operator, and query, key and value unbound."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        seen = None if mask is None else mask[:, None, None, :].bool()
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.project(attended.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and a hidden layer, each after a norm."""

    def __init__(self, width: int, heads: int, *, fused: bool, attention: type[SelfAttention] = SelfAttention) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), attention(width, heads, fused=fused)
        self.norm2, self.expand, self.gelu = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU()
        self.project = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.project(self.gelu(self.expand(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches with a class token (Dosovitskiy et al. 2021)."""

    def __init__(self, *, fused: bool, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(32, 4, fused=fused) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.layers(tokens))[:, 0])


class TextEncoder(nn.Module):
    """Words and positions, masked attention, the first token's class (Devlin et al. 2019)."""

    def __init__(self, *, fused: bool = False, attention: type[SelfAttention] = SelfAttention, depth: int = 2) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, 32), nn.Embedding(TOKENS, 32)
        self.norm = nn.LayerNorm(32)
        layers = (EncoderLayer(32, 4, fused=fused, attention=attention) for _ in range(depth))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(32, NUM_CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.positions(torch.arange(tokens.shape[1])))
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x[:, 0])


class UNet(nn.Module):
    """Down, up by transposed convolutions, and the maps of each height joined (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bottom = block(3, 16, 3), block(16, 32, 3), block(32, 48, 3)
        self.up2, self.join2 = nn.ConvTranspose2d(48, 32, 2, 2), block(64, 32, 3)
        self.up1, self.join1 = nn.ConvTranspose2d(32, 16, 2, 2), block(32, 16, 3)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.first(image)
        second = self.second(functional.max_pool2d(first, 2))
        x = self.up2(self.bottom(functional.max_pool2d(second, 2)))
        x = self.up1(self.join2(torch.cat([x, second], 1)))
        return self.out(self.join1(torch.cat([x, first], 1)))


class Recurrent(nn.Module):
    """A recurrent layer whose last state is classified."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Linear(8, 16), kind(16, 24, batch_first=True)
        self.hidden, self.head = nn.Linear(24, 32), nn.Linear(32, NUM_CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        states, _ = self.recurrent(torch.relu(self.embed(series)))
        return self.head(torch.relu(self.hidden(states[:, -1])))


@dataclass(frozen=True)
class Family:
    """How to make a network of a family, and what it takes."""

    make: Callable[[], nn.Module]
    inputs: Mapping[str, tuple[int, ...]]
    """Shapes by name, without the batch."""

    def network(self, seed: int = 0) -> nn.Module:
        """In eval mode, its batch norms' statistics those of random inputs, not the first ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
            model(*self.example(16, seed=seed).values())
            return model.eval()

    def example(self, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
        """Random inputs; tokens are integers, and masks end some of the texts early."""
        draws = torch.Generator().manual_seed(seed)
        made: dict[str, Tensor] = {}
        for name, shape in self.inputs.items():
            if name == "tokens":
                made[name] = torch.randint(0, VOCABULARY, (batch, *shape), generator=draws)
            elif name == "mask":
                lengths = torch.randint(shape[0] // 2, shape[0] + 1, (batch, 1), generator=draws)
                made[name] = (torch.arange(shape[0]) < lengths).long()
            else:
                made[name] = torch.randn(batch, *shape, generator=draws)
        return made


def densenet() -> nn.Module:
    layers = [DenseLayer(16 + 12 * number, 12) for number in range(3)]
    return nn.Sequential(block(3, 16, 3, stride=2), *layers, nn.BatchNorm2d(52), nn.ReLU(), Head(52))


def mobilenet_v3() -> nn.Module:
    return nn.Sequential(
        block(3, 16, 3, stride=2, act=nn.Hardswish),
        InvertedResidual(16, 16, 1, nn.ReLU, nn.Hardsigmoid),
        InvertedResidual(16, 24, 2, nn.Hardswish, None),
        InvertedResidual(24, 24, 1, nn.Hardswish, nn.Hardsigmoid),
        block(24, 64, 1, act=nn.Hardswish),
        Head(64),
    )


def efficientnet() -> nn.Module:
    return nn.Sequential(
        block(3, 16, 3, stride=2, act=nn.SiLU),
        InvertedResidual(16, 24, 2, nn.SiLU, nn.Sigmoid),
        InvertedResidual(24, 24, 1, nn.SiLU, nn.Sigmoid),
        block(24, 64, 1, act=nn.SiLU),
        Head(64),
    )


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 4), ChannelNorm(24), ConvNeXtBlock(24), ConvNeXtBlock(24), ChannelNorm(24), Head(24)
    )


FAMILIES: dict[str, Family] = {
    "densenet": Family(densenet, IMAGE),
    "mobilenet_v3": Family(mobilenet_v3, IMAGE),
    "efficientnet": Family(efficientnet, IMAGE),
    "convnext": Family(convnext, IMAGE),
    "vit_split_qkv": Family(lambda: VisionTransformer(fused=False, depth=1), IMAGE),
    "vit_fused_qkv": Family(lambda: VisionTransformer(fused=True), IMAGE),
    "text_encoder": Family(TextEncoder, {"tokens": (TOKENS,), "mask": (TOKENS,)}),
    "text_one_operator": Family(
        lambda: TextEncoder(fused=True, attention=OneOperatorAttention, depth=1),
        {"tokens": (TOKENS,), "mask": (TOKENS,)},
    ),
    "unet": Family(UNet, IMAGE),
    "lstm": Family(lambda: Recurrent(nn.LSTM), SERIES),
    "gru": Family(lambda: Recurrent(nn.GRU), SERIES),
}
"""By name; those that potstill builds itself are in `potstill.pipeline.networks`."""


def network(family: str) -> nn.Module:
    """An untrained network of a family, as a recipe's `python: families.py:network` asks for it."""
    return FAMILIES[family].make()
