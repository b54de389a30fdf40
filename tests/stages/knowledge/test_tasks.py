"""Facts about what can be learnt from a teacher that tells no classes apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.errors import StageError
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.progress import Progress
from potstill.pipeline.teacher import Teacher
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.objective import DistillationTraining, learn, methods
from potstill.stages.knowledge.response.kd import SoftTargets
from potstill.stages.knowledge.tasks import learning_outputs, problems_without_classes
from potstill.stages.prune import Budget, Prune
from tests.support.contexts import context_on
from tests.support.family_data import family_artifact, family_data

WITHOUT_CLASSES = {name: each for name, each in methods().items() if not each.needs_classes()}
OF_CONVOLUTIONS = {
    name: each for name, each in WITHOUT_CLASSES.items() if {"outputs", "maps", "features"}.issuperset(each.needs)
}


class Centres(DataSource):
    """Noisy images with one bright spot, and where it is."""

    source: Literal["centres"] = "centres"

    def read(self, directory: Path, progress: Progress) -> Reading:
        draws = np.random.default_rng(0)

        def split(count: int, name: str) -> RawSamples:
            places = draws.integers(2, 14, (count, 2))
            images = draws.normal(0, 0.1, (count, 1, 16, 16)).astype(np.float32)
            for image, (row, column) in zip(images, places, strict=True):
                image[0, row - 2 : row + 2, column - 2 : column + 2] += 1
            return RawSamples({"image": images}, (places / 8 - 1).astype(np.float32), name)

        return Reading(split(64, "train"), split(32, "test"), "centres")


@pytest.fixture(scope="module")
def centres() -> Dataset:
    return Centres(batch_size=32).load(Path(), "numbers")


def network(data: Dataset, width: int) -> Artifact:
    blueprint = Blueprint(
        model=ResNet(depth=8, width=width), input_shapes=data.input_shapes, num_classes=data.num_outputs
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        return Artifact(model=blueprint.build().eval(), blueprint=blueprint)


@pytest.fixture
def taught(centres: Dataset, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Teaches a small network for an epoch; returns the terms of the loss."""

    def teach(*knowledge: Method, teacher: Artifact | None = None, student: Artifact | None = None) -> dict[str, float]:
        context = context_on(
            centres if student is None else family_data("unet"),
            tmp_path / "checkpoints",
            teacher=Teacher(teacher or network(centres, 16)),
        )
        mine = student or network(centres, 8)
        training = DistillationTraining(epochs=1, knowledge=knowledge)
        learn(mine.model, training, mine.blueprint, context, name="learn")
        return context.journal.curve[-1].terms

    return teach


@pytest.mark.parametrize("name", OF_CONVOLUTIONS)
def test_what_needs_no_classes_teaches_numbers(name: str, taught: Callable[..., dict[str, float]]) -> None:
    terms = taught(OF_CONVOLUTIONS[name]())
    assert {"task", name} <= set(terms)
    assert all(np.isfinite(value) for value in terms.values())
    assert terms["task"] > 0


def test_the_outputs_of_a_u_net_teach_maps(taught: Callable[..., dict[str, float]]) -> None:
    unet = family_artifact("unet", family_data("unet"))
    terms = taught(WITHOUT_CLASSES["logits"](), WITHOUT_CLASSES["at"](), teacher=unet, student=unet)
    assert set(terms) == {"task", "logits", "at"}


def test_what_needs_classes_is_refused_where_there_are_none(taught: Callable[..., dict[str, float]]) -> None:
    with pytest.raises(StageError, match="`kd` is for classes, of which it needs logits, and this task has none; use"):
        taught(SoftTargets())


def test_teachers_are_not_weighed_by_classes_that_there_are_not(centres: Dataset, tmp_path: Path) -> None:
    made = network(centres, 8)
    context = context_on(centres, tmp_path / "checkpoints", teacher=Teacher(made), artifacts={"other": made})
    training = DistillationTraining(
        epochs=1, knowledge=(WITHOUT_CLASSES["logits"](),), teachers=("teacher", "other"), combine="confidence"
    )
    with pytest.raises(StageError, match="weighs teachers by the classes they know; use `combine: average`"):
        learn(made.model, training, made.blueprint, context, name="learn")


def test_what_cannot_serve_a_u_net_names_nothing_that_needs_classes(taught: Callable[..., dict[str, float]]) -> None:
    unet = family_artifact("unet", family_data("unet"))
    with pytest.raises(StageError, match="Methods that can serve this pair") as caught:
        taught(WITHOUT_CLASSES["srrl"](), teacher=unet, student=unet)
    assert "`logits`" in str(caught.value)
    assert "`kd`" not in str(caught.value)
    assert "`simkd`" not in str(caught.value)


def test_defaults_alone_are_changed_for_a_task_without_classes() -> None:
    stage = Prune(keep=Budget(macs=0.5))
    assert list(problems_without_classes(stage)) != []
    changed = learning_outputs(stage)
    assert list(problems_without_classes(changed)) == []
    assert changed.recover.epochs == stage.recover.epochs
    asked = stage.model_copy(update={"recover": stage.recover.model_copy(update={"knowledge": (SoftTargets(),)})})
    assert learning_outputs(asked) == asked
