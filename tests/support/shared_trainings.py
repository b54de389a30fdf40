"""Trainings that one process or several make alike, and what they end with."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Batch, Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.processes import ALONE, Processes
from potstill.pipeline.progress import Progress
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, Schedule, TaskObjective, fit, state_of
from potstill.stages.knowledge.objective import DistillationTraining, learn
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.contexts import context_on

ABOUT_ALIKE = 1e-3
"""How far trained weights may be apart, relative to how far they moved: one process's sums in another order, too."""


class Stripes(DataSource):
    """Noisy images whose class is the quarter that is bright."""

    source: Literal["stripes"] = "stripes"

    def read(self, directory: Path, progress: Progress) -> Reading:
        """96 samples to train on, 26 to test on."""
        draws = np.random.default_rng(0)

        def split(count: int, name: str) -> RawSamples:
            target = np.arange(count) % 4
            images = draws.normal(0, 0.6, (count, 1, 16, 16)).astype(np.float32)
            for image, label in zip(images, target, strict=True):
                image[0, 4 * label : 4 * label + 4] += 1.0
            return RawSamples({"image": images}, target, name)

        return Reading(split(96, "train"), split(26, "test"), "stripes")


def stripes() -> Dataset:
    """Cropped anew in each of two views; 30 samples are held out."""
    return Stripes(batch_size=16, validation=30, augment=("random_crop",), views=2).load(Path())


def network(data: Dataset, seed: int, width: int) -> Artifact:
    blueprint = Blueprint(
        model=ResNet(depth=8, width=width), input_shapes=data.input_shapes, num_classes=data.num_classes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Artifact(model=blueprint.build().eval(), blueprint=blueprint)


def trained_on_the_task(context: Context) -> dict[str, Tensor]:
    """With batch norm, dropout of pixels and of maps, and stochastic depth."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Dropout(0.2), nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), LessDepth(),
        nn.Flatten(), nn.Linear(392, 4), nn.BatchNorm1d(4),
    )  # fmt: skip
    fit(model, TaskObjective(context), Schedule(epochs=2), context, name="task")
    return state_of(model)


class LessDepth(nn.Module):
    """Leaves some samples out, as timm's `DropPath` does."""

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training:
            return maps
        return maps * maps.new_empty((len(maps), 1, 1, 1)).bernoulli_(0.8)


def distilled(context: Context) -> dict[str, Tensor]:
    """From a memory bank, pairs of samples, differentiated gradients, a peer, and stored outputs of a teacher."""
    knowledge = [{"kd": {}}, {"crd": {"negatives": 16}}, {"rkd": {}}, {"lwm": {}}, {"dml": {"peers": 1}}]
    student = network(context.data, 0, 8)
    training = DistillationTraining.model_validate({"knowledge": knowledge, "epochs": 2, "learning_rate": 0.01})
    learn(student.model, training, student.blueprint, context, name="distill")
    return state_of(student.model)


def quantized(context: Context) -> dict[str, Tensor]:
    """Under fake quantizers whose ranges follow the batches."""
    recovery = Recovery(epochs=1, learning_rate=1e-3)
    made = Quantize(stage="quantize", recover=recovery).run(network(context.data, 0, 8), context)
    assert made.quantization is not None
    ranges = {name: torch.tensor(grid.scale) for name, grid in made.quantization.activations.items()}
    return state_of(made.model) | {f"scale {name}": scale for name, scale in ranges.items()}


TRAININGS: dict[str, Callable[[Context], dict[str, Tensor]]] = {
    "task": trained_on_the_task,
    "distilled": distilled,
    "quantized": quantized,
}


def context_of(folder: Path, name: str, processes: Processes = ALONE) -> Context:
    """On the stripes, with a teacher whose outputs are stored in the folder."""
    data = stripes()
    teacher = Teacher(network(data, 1, 12), None, folder / "stored")
    return context_on(data, folder / name, teacher=teacher, processes=processes)


class Dying(TaskObjective):
    """The task's loss, until one process is killed."""

    def __init__(self, context: Context, step: int) -> None:
        super().__init__(context)
        self._dies = step if context.processes.rank == 1 else None

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        if moment.step == self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().terms(model, batch, moment)


def train_until_one_dies(context: Context, step: int = 6) -> dict[str, Tensor]:
    """Twelve steps of the task, of which a second process does not see the end."""
    model = network(context.data, 0, 8).model
    fit(model, Dying(context, step), Schedule(epochs=3), context, name="short")
    return state_of(model)


def apart(mine: dict[str, Tensor], theirs: dict[str, Tensor], first: dict[str, Tensor]) -> float:
    """How far two trainings' tensors are apart, relative to how far the first one came from where it began."""

    def length(one: dict[str, Any], other: dict[str, Any]) -> float:
        return sum(float((one[key].double() - other[key].double()).square().sum()) for key in one) ** 0.5

    return length(mine, theirs) / length(mine, {key: first.get(key, torch.zeros(())) for key in mine})
