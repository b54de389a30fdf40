"""Random data for a family's network, and the network as an artifact, to take it through the stages."""

from pathlib import Path
from typing import Literal

import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.models import PythonModel
from potstill.pipeline.progress import Progress
from tests.support import families
from tests.support.families import FAMILIES, NUM_CLASSES

REGRESSIONS = ("unet",)


class RandomInputs(DataSource):
    """What the family takes, and targets that mean nothing: labels, for the U-Net maps of numbers."""

    source: Literal["random_inputs"] = "random_inputs"
    family: str

    def read(self, directory: Path, progress: Progress) -> Reading:
        """192 samples to train on and 64 to test on."""

        def split(count: int, name: str, seed: int) -> RawSamples:
            inputs = FAMILIES[self.family].example(count, seed)
            target = torch.arange(count) % NUM_CLASSES
            if self.family in REGRESSIONS:
                target = inputs["image"].mean(1, keepdim=True)
            return RawSamples({key: tensor.numpy() for key, tensor in inputs.items()}, target.numpy(), name)

        return Reading(split(192, "train", 1), split(64, "test", 2), self.family)


def family_data(family: str) -> Dataset:
    """160 samples to train on, 32 to validate on, 64 to test on, in batches of 32."""
    return RandomInputs(family=family, batch_size=32, validation=32).load(
        Path(), "numbers" if family in REGRESSIONS else "classes"
    )


def family_artifact(family: str, data: Dataset) -> Artifact:
    """The family's network as a recipe would name it, rebuilt by its file alone."""
    reference = PythonModel(python=f"{families.__file__}:network", arguments={"family": family})
    blueprint = Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=data.num_outputs)
    return Artifact(model=FAMILIES[family].network(), blueprint=blueprint)
