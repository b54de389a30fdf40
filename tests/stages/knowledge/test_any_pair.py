"""Every method on networks of different families: it works, or says why not and which ones would."""

from collections.abc import Callable

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.errors import StageError
from potstill.pipeline.models import ModelReference
from potstill.pipeline.networks.network import Network
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective, methods
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

NETWORKS = {
    "resnet": {"name": "resnet", "depth": 8, "width": 8},
    "wrn": {"name": "wrn", "depth": 10, "widen": 1},
    "vgg": {"name": "vgg", "depth": 8, "width": 0.125},
    "mobilenet": {"name": "mobilenet_v2", "width": 0.25},
    "shufflenet": {"name": "shufflenet_v2", "width": 0.5},
    "vit": {"name": "vit", "patch": 4, "depth": 2, "width": 24, "heads": 3},
    "finer vit": {"name": "vit", "patch": 2, "depth": 3, "width": 32, "heads": 2},
}
PAIRS = [
    ("resnet", "vit"),
    ("vit", "resnet"),
    ("finer vit", "vit"),
    ("vgg", "mobilenet"),
    ("wrn", "shufflenet"),
]


class OnlyVectors(nn.Module):
    """A perceptron of images, which has no maps."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.hidden = nn.Linear(256, 16)
        self.relu = nn.ReLU()
        self.head = nn.Linear(16, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.relu(self.hidden(self.flatten(image))))


def artifact_of(name: str, context: Context) -> Artifact:
    reference: Network = TypeAdapter(ModelReference).validate_python(NETWORKS[name])
    data = context.data
    blueprint = Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=data.num_classes)
    torch.manual_seed(0)
    return Artifact(model=blueprint.build().eval(), blueprint=blueprint)


def tried(method: str, student: nn.Module, blueprint: Blueprint, context: Context) -> dict[str, Tensor] | str:
    """One step's terms, or why the method cannot serve."""
    settings = Distillation.model_validate({"knowledge": [method]})
    try:
        objective = DistillationObjective(settings, student, blueprint, context, rehearsal=True)
    except StageError as error:
        return str(error)
    return objective.terms(student.train(), context.data.train.batch(torch.arange(12)), Moment(5, 10, 1))


@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids=[f"{a} to {b}" for a, b in PAIRS])
@pytest.mark.parametrize("method", [name for name, each in methods().items() if not each.stays_at_inference])
def test_works_or_names_what_can(teacher: str, student: str, method: str, new_context: NewContext) -> None:
    context = new_context(Teacher(artifact_of(teacher, new_context())))
    learner = artifact_of(student, context)
    found = tried(method, learner.model, learner.blueprint, context)
    if isinstance(found, str):
        assert f"`{method}`" in found
        assert "Methods that can serve this pair" in found
        assert "`kd`" in found
    else:
        assert all(bool(torch.isfinite(value)) for value in found.values())


@pytest.mark.parametrize("method", methods())
def test_on_vectors_alone_works_or_names_what_can(
    method: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    context = new_context(Teacher(new_artifact()))
    found = tried(method, OnlyVectors(context.data.num_classes), new_artifact().blueprint, context)
    named = method in named_for_vectors(new_artifact, context)
    assert named == (not isinstance(found, str)), found


def named_for_vectors(new_artifact: NewArtifact, context: Context) -> list[str]:
    """What the refusal of a method that needs attentions, which neither network has, names."""
    found = tried("attention", OnlyVectors(context.data.num_classes), new_artifact().blueprint, context)
    assert isinstance(found, str)
    _, alternatives = found.split("Methods that can serve this pair: ")
    return alternatives.replace("`", "").split(", ")
