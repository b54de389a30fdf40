"""What every family of built-in networks is made of: its settings, which build it, and what the families share."""

from abc import ABC, abstractmethod
from typing import Self

from pydantic import BaseModel
from torch import nn

from ..errors import ModelError

Image = tuple[int, int, int]
"""Channels, height and width."""


class Network(BaseModel, ABC, frozen=True, extra="forbid"):
    """A family of image classifiers; a subclass needs no registration, and its fields are its YAML keys.

    In every family activations and pools are modules of their own, each stage of one resolution is one module, and the
    last layer is an ``nn.Linear``.
    """

    name: str

    @property
    def label(self) -> str:
        """What it is called in reports."""
        return self.name

    def source(self) -> str:
        """What else than its settings the network depends on, such as another package's version."""
        return ""

    @abstractmethod
    def build(self, image: Image, num_classes: int) -> nn.Module:
        """The network for images of this shape, with first weights drawn from torch's global generator.

        ModelError where the image does not fit.
        """

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


def rounded(value: float, multiple: int) -> int:
    """The nearest multiple, halves upwards, at least one of them."""
    return max(int(value / multiple + 0.5), 1) * multiple


def nearest_depth(depth: float, depths: tuple[int, ...]) -> int:
    """Which of the depths that a family has is nearest; the smaller of two."""
    return min(depths, key=lambda each: abs(each - depth))


def initialize(model: nn.Module) -> None:
    """First weights of convolutions and linear layers that keep activations' size through ReLUs (arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
