"""Pairs of networks for methods that run them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Split
from potstill.stages.knowledge.anatomy import Anatomy
from potstill.stages.knowledge.pair import Pair
from potstill.stages.stage import Context


def offered(pair: Pair) -> list[str]:
    return ["kd", "dkd"]


@pytest.fixture
def new_pair(new_artifact: Callable[..., Artifact], new_context: Callable[..., Context]) -> Callable[..., Pair]:
    """Makes a pair of any two networks that take the context's images, or `inputs`."""

    def make(student: nn.Module, teacher: nn.Module, inputs: dict[str, Tensor] | None = None) -> Pair:
        context = new_context()
        if inputs is not None:
            count = len(next(iter(inputs.values())))
            test = Split(inputs, torch.zeros(count, dtype=torch.int64), normalizations={})
            context = replace(context, data=replace(context.data, test=test))
        mine, theirs = (Anatomy(model, context.data.example()) for model in (student, teacher))
        return Pair("method", mine, theirs, context, 0, new_artifact().blueprint, offered)

    return make
