"""Artifacts of the networks in zoo.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset
from potstill.pipeline.models import PythonModel

ZOO = Path(__file__).with_name("zoo.py")


def stirred(model: nn.Module) -> nn.Module:
    """The model with every tensor drawn anew, so that no norm is an identity and no bias is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * (0.5 if "running_var" in name else 0.2))
    return model


@pytest.fixture
def zoo_artifact(data: Dataset) -> Callable[[str], Artifact]:
    """Makes the artifact of a network in zoo.py by the name of its function."""

    def make(name: str) -> Artifact:
        reference = PythonModel(python=f"{ZOO}:{name}")
        blueprint = Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=data.num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return Artifact(model=stirred(blueprint.build()).eval(), blueprint=blueprint)

    return make
