"""A data set and a context small enough that every test trains in a second."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.progress import Progress
from potstill.pipeline.teacher import Teacher
from potstill.stages.stage import Context
from tests.support.brief_timing import make_brief
from tests.support.contexts import context_on

make_brief()

# Most tests capture and export graphs: collecting among their many small objects took some tenth of the time.
gc.set_threshold(20_000, 20, 50)

NUM_CLASSES = 4


class Bars(DataSource):
    """Noisy images whose class is the quarter that is bright."""

    source: Literal["bars"] = "bars"
    samples: int = 192

    def read(self, directory: Path, progress: Progress) -> Reading:
        """Both splits from a fixed seed."""
        draws = np.random.default_rng(0)

        def split(count: int, name: str) -> RawSamples:
            target = np.arange(count) % NUM_CLASSES
            images = draws.normal(0, 0.6, (count, 1, 16, 16)).astype(np.float32)
            for image, label in zip(images, target, strict=True):
                image[0, 4 * label : 4 * label + 4] += 1.0
            return RawSamples({"image": images}, target, name)

        return Reading(split(self.samples, "train"), split(64, "test"), "bars")


@pytest.fixture(scope="session")
def data() -> Dataset:
    """Four classes of 1×16×16 images: 160 to train on, 32 to validate on, 64 to test on."""
    return Bars(batch_size=32, validation=32).load(Path())


@pytest.fixture
def new_data() -> Callable[..., Dataset]:
    """Makes the same data with other settings, such as `augment` and `views`."""

    def make(**settings: Any) -> Dataset:
        return Bars(batch_size=32, validation=32, **settings).load(Path())

    return make


@pytest.fixture
def new_artifact(data: Dataset) -> Callable[..., Artifact]:
    """Makes an untrained ResNet of the given seed, depth and width."""

    def make(seed: int = 0, depth: int = 8, width: int = 8) -> Artifact:
        blueprint = Blueprint(
            model=ResNet(depth=depth, width=width),
            input_shapes=data.input_shapes,
            num_classes=data.num_classes,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Artifact(model=blueprint.build().eval(), blueprint=blueprint)

    return make


@pytest.fixture
def new_context(data: Dataset, tmp_path: Path) -> Callable[..., Context]:
    """Makes a context on the CPU in float32, with its own folder of checkpoints."""

    def make(teacher: Teacher | None = None, *, step: str = "01-test", seed: int = 5) -> Context:
        checkpoints = tmp_path / "checkpoints" / step
        return context_on(data, checkpoints, teacher=teacher, step=step, seed=seed, directory=tmp_path)

    return make
