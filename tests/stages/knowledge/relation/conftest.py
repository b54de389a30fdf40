"""Pairs of networks that have, or lack, what methods compare."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.stages.knowledge.anatomy import Anatomy
from potstill.stages.knowledge.pair import Pair
from potstill.stages.stage import Context


def offered(pair: Pair) -> list[str]:
    return ["kd", "dkd"]


class Plain(nn.Module):
    """Layers of vectors without a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 12)
        self.second = nn.Linear(12, 4)
        self.third = nn.Linear(4, 4)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.third(self.second(self.first(image.flatten(1)))))


@pytest.fixture
def new_pair(new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]) -> Callable[..., Pair]:
    """Makes a pair of any two networks that take the context's images; by default, of a narrow and a wide ResNet."""

    def make(student: nn.Module | None = None, teacher: nn.Module | None = None) -> Pair:
        context = new_context()
        student = student or new_artifact().model
        teacher = teacher or new_artifact(seed=1, depth=14, width=16).model
        mine, theirs = (Anatomy(model, context.data.example()) for model in (student, teacher))
        return Pair("method", mine, theirs, context, 0, new_artifact().blueprint, offered)

    return make


@pytest.fixture
def without_maps() -> nn.Module:
    """A network that has vectors alone and no linear head."""
    return Plain()
