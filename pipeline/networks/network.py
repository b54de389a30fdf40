"""What every family of built-in networks is made of: its settings, which build it, and what the families share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import BaseModel
from torch import nn

from ..errors import ModelError

Image = tuple[int, int, int]
"""Channels, height and width."""
Shapes = Mapping[str, tuple[int, ...]]
"""Of one sample, by input name."""


class Network(BaseModel, ABC, frozen=True, extra="forbid"):
    """A family of classifiers; a subclass needs no registration, and its fields are its YAML keys.

    In every family that is ours the last layer is an ``nn.Linear``.
    """

    name: str

    @property
    def label(self) -> str:
        """What it is called in reports."""
        return self.name

    def source(self) -> str:
        """What else than its settings it depends on, such as another package's version; empty for a network of ours."""
        return ""

    @abstractmethod
    def build_for(self, shapes: Shapes, num_classes: int, vocabulary: int = 0) -> nn.Module:
        """The network for samples of these shapes, with first weights drawn from torch's global generator.

        `vocabulary` counts the tokens that the data's tokenizer knows; 0 where samples are no texts. ModelError where
        the network does not take such inputs.
        """

    def resolved(self, directory: Path) -> Self:
        """The same, with the paths of whatever files it reads made absolute from `directory`."""
        return self

    def weights(self) -> Path | None:
        """The file of weights that it is built with, where a network brings its own; None where they are drawn."""
        return None

    @abstractmethod
    def scaled(self, *, width: float, depth: float) -> Self:
        """A smaller or larger relative: channels and blocks times these factors, rounded to what the family takes.

        ModelError where the family cannot scale one of them.
        """

    def of_fixed_depth(self, depth: float) -> None:
        """For families whose blocks are given by their paper: ModelError unless the factor `depth` is 1."""
        if depth != 1:
            raise ModelError(
                f"{self.name} has a fixed number of blocks, so no student of {depth:g} times its depth can be derived "
                "from it; scale its `width` only, or name the student's own network"
            )


class ImageNetwork(Network, ABC, frozen=True, extra="forbid"):
    """A family of image classifiers.

    Activations and pools are modules of their own, and each stage of one resolution is one module.
    """

    @abstractmethod
    def build(self, image: Image, num_classes: int) -> nn.Module:
        """The network for images of this shape; ModelError where the image does not fit."""

    def build_for(self, shapes: Shapes, num_classes: int, vocabulary: int = 0) -> nn.Module:
        """ModelError where a sample is anything but one image."""
        (shape, *others) = shapes.values()
        if others or len(shape) != 3:
            raise ModelError(
                f"{self.name} takes one image (channels, height, width), but the data gives {told(shapes)}"
            )
        return self.build((shape[0], shape[1], shape[2]), num_classes)


def told(shapes: Shapes) -> str:
    """What a sample is, for messages."""
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def rounded(value: float, multiple: int) -> int:
    """The nearest multiple, halves upwards, at least one of them."""
    return max(int(value / multiple + 0.5), 1) * multiple


def nearest_depth(depth: float, depths: tuple[int, ...]) -> int:
    """Which of the depths that a family has is nearest; the smaller of two."""
    return min(depths, key=lambda each: abs(each - depth))


def convolutions(in_channels: int, widths: Iterable[int], *, bias: bool) -> nn.Sequential:
    """3x3 convolutions of these widths one after another, each with batch norm and ReLU; the resolution stays."""
    layers: list[nn.Module] = []
    for before, after in pairwise((in_channels, *widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=bias), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def initialize(model: nn.Module) -> None:
    """First weights of convolutions and linear layers that keep activations' size through ReLUs (arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
