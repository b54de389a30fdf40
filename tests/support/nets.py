"""Small networks of 1×16×16 images and 4 classes, one for each way in which networks are put together."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.networks.resnet import ResNet
from potstill.stages.knowledge.anatomy import Anatomy
from potstill.stages.knowledge.objective import servants
from potstill.stages.knowledge.pair import Pair
from potstill.stages.stage import Context

NUM_CLASSES = 4


class Attention(nn.Module):
    """Self-attention; `softmax` says whether a module gives the probabilities, is given them, or neither."""

    def __init__(self, width: int, heads: int, softmax: Literal["module", "dropout", "hidden"], fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.shown = softmax
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        if softmax == "module":
            self.softmax = nn.Softmax(-1)
        if softmax != "hidden":
            self.dropout = nn.Dropout(0.1)
        self.fused = fused
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.query(x), self.key(x), self.value(x))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        probabilities = self.softmax(scores) if self.shown == "module" else scores.softmax(-1)
        if self.shown != "hidden":
            probabilities = self.dropout(probabilities)
        return self.project((probabilities @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block of a transformer whose hidden layer is a numbered row of modules, as blocks are."""

    def __init__(self, width: int, heads: int, softmax: Literal["module", "dropout", "hidden"], fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, softmax, fused)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """A vision transformer of (16 / patch)² tokens and, with `class_token`, one more that the head stands on."""

    def __init__(
        self,
        *,
        depth: int = 2,
        width: int = 8,
        heads: int = 2,
        patch: int = 4,
        class_token: bool = False,
        softmax: Literal["module", "dropout", "hidden"] = "module",
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.first = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, (16 // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads, softmax, fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        if self.first is not None:
            tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens))
        return self.head(tokens.mean(1) if self.first is None else tokens[:, 0])


class Unit(nn.Module):
    """Convolution, batch norm and a ReLU: a module, one in place, or a function."""

    def __init__(self, in_channels: int, channels: int, stride: int, relu: Literal["module", "inplace", "function"]):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        if relu != "function":
            self.relu = nn.ReLU(inplace=relu == "inplace")
        self.called = relu == "function"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return functional.relu(x) if self.called else self.relu(x)


class Plain(nn.Module):
    """Three stages of 16, 8 and 4 pixels, their mean, and a linear layer."""

    def __init__(self, width: int = 4, relu: Literal["module", "inplace", "function"] = "module") -> None:
        super().__init__()
        self.stage1 = Unit(1, width, 1, relu)
        self.stage2 = Unit(width, 2 * width, 2, relu)
        self.stage3 = Unit(2 * width, 4 * width, 2, relu)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.pool(self.stage3(self.stage2(self.stage1(image)))).flatten(1))


class PreActivation(nn.Module):
    """A residual network whose blocks start with an activation in place, and end in a sum (He et al. 2016)."""

    class Stage(nn.Module):
        def __init__(self, in_channels: int, channels: int, stride: int) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1)
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(x)
            return self.conv(x) + self.shortcut(x)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.stage1 = self.Stage(4, 4, 1)
        self.stage2 = self.Stage(4, 8, 2)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.stage2(self.stage1(self.stem(image)))
        return self.head(functional.relu(maps, inplace=True).mean((2, 3)))


class FlatHead(nn.Module):
    """A network without a mean: the head stands on every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = Unit(1, 4, 4, "module")
        self.head = nn.Linear(4 * 16, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stage1(image).flatten(1))


class ConvHead(nn.Module):
    """A network whose logits are the means of maps, one for each class, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = Unit(1, 4, 2, "module")
        self.head = nn.Conv2d(4, NUM_CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stage1(image)).mean((2, 3))


class Hybrid(nn.Module):
    """Convolutions with a transformer's blocks between them, as in MobileViT."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = Unit(1, 4, 2, "module")
        self.blocks = nn.Sequential(Block(4, 2, "module", fused=False), Block(4, 2, "module", fused=False))
        self.stage2 = Unit(4, 8, 2, "module")
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.stage1(image)
        tokens = self.blocks(maps.flatten(2).transpose(1, 2))
        return self.head(self.stage2(tokens.transpose(1, 2).reshape(maps.shape)).mean((2, 3)))


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy found with two images."""
    return Anatomy(model, {"image": torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))})


def pair_of(student: nn.Module, teacher: nn.Module, context: Context, method: str = "hint") -> Pair:
    """The two side by side, for a method of this name."""
    data = context.data
    blueprint = Blueprint(
        model=ResNet(depth=8, width=8),
        input_shapes=data.input_shapes,
        num_classes=data.num_classes,
    )
    return Pair(method, anatomy_of(student), anatomy_of(teacher), context, 0, blueprint, servants)
