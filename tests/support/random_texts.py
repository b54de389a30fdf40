"""Token numbers that mean nothing, of unequal lengths, for a text encoder that nobody trained."""

from pathlib import Path
from typing import Literal

import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.networks.text_encoder import TextEncoder
from potstill.pipeline.progress import Progress

VOCABULARY, LONGEST = 60, 24


def tokens(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Texts of these lengths, padded to the longest."""
    draws = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": mask * torch.randint(4, VOCABULARY, mask.shape, generator=draws), "attention_mask": mask}


class RandomTexts(DataSource):
    """64 texts of 2 to 24 tokens to train on, 48 to test on, of 2 classes in turns."""

    source: Literal["random_texts"] = "random_texts"

    def read(self, directory: Path, progress: Progress) -> Reading:
        """Both splits."""

        def split(count: int, name: str, seed: int) -> RawSamples:
            lengths = [LONGEST, *(2 + 7 * number % (LONGEST - 1) for number in range(count - 1))]
            inputs = {key: tensor.numpy() for key, tensor in tokens(*lengths, seed=seed).items()}
            return RawSamples(inputs, (torch.arange(count) % 2).numpy(), name)

        return Reading(split(64, "train", 1), split(48, "test", 2), "random texts")


def random_texts() -> Dataset:
    """In batches of 16."""
    return RandomTexts(batch_size=16).load(Path())


def encoder_artifact(data: Dataset, network: TextEncoder | None = None) -> Artifact:
    """An untrained text encoder of 2 blocks."""
    blueprint = Blueprint(
        model=network or TextEncoder(depth=2, width=16, heads=2),
        input_shapes=data.input_shapes,
        num_classes=2,
        vocabulary=VOCABULARY,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Artifact(model=blueprint.build().eval(), blueprint=blueprint)
