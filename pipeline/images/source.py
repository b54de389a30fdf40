"""What all sources of encoded images share: their settings, and the way from images to samples."""

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ..data import DataSource
from ..data_checks import CheckedReading, RawSamples, Reading, Samples
from ..errors import DataError
from ..progress import Progress
from .division import Labelled, held_out, listed, misleading_copies, with_test_share
from .pictures import PictureInput, Preparation
from .storage import Storage
from .workers import Problem, Workers, default_workers, demand_pillow

INPUT = "image"

Share = Annotated[float, Field(gt=0, lt=1)]
SplitName = Annotated[str, Field(min_length=1)]


class PictureSource(DataSource, ABC, frozen=True, extra="forbid"):
    """Encoded images, decoded once before the training begins."""

    size: Annotated[int, Field(ge=1, le=4096)] = 224
    """Height and width in pixels of what the network sees: the middle of each image."""
    resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    """To how many pixels an image's shorter side is brought before its middle is cut out; without, to `size`."""
    test: Share | SplitName = "test"
    """What is measured on: the name of a split or folder, or a share of the training images that is put aside."""
    duplicates: Literal["refuse", "keep"] = "refuse"
    """What becomes of equal images in two splits, or under two labels."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """How many processes decode; without, one a core. The result does not depend on it."""
    memory_bytes: Annotated[int, Field(ge=0)] = 4_000_000_000
    """How much of the memory decoded images may take, 3 × size × size bytes each."""
    cache: Path | None = None
    """A folder that decoded images are stored in and mapped from, however many; later runs find them there."""

    @model_validator(mode="after")
    def _middle_is_inside(self) -> Self:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"`resize: {self.resize}` is smaller than `size: {self.size}`, which is cut out of it")
        return self

    def reading_of(
        self,
        splits: Mapping[str, Labelled],
        classes: tuple[str, ...] | None,
        title: str,
        directory: Path,
        progress: Progress,
    ) -> Reading:
        """The images of `train`, `test` and `validation` decoded; a split that is missing is divided off as asked.

        DataError names all images that cannot be decoded, and all that occur in two splits.
        """
        demand_pillow()
        divided = self._divided(splits)
        decoded = self._decoded(divided, directory, progress)
        copies = misleading_copies(divided)
        if copies and self.duplicates == "refuse":
            raise DataError(
                f"{divided['train'].origin}: {_count(copies)} in two splits, or under two labels:{listed(copies)}\n"
                "remove one of each, or say `duplicates: keep`"
            )
        note = f"; {_count(copies)} in two splits or under two labels" if copies else ""
        return Reading(
            decoded["train"],
            decoded["test"],
            title + note,
            validation=decoded.get("validation"),
            classes=classes,
        )

    def held_out(self, reading: CheckedReading) -> tuple[Samples, Samples | None]:
        """Images are divided before they are decoded."""
        if reading.train.pictures is None:
            return super().held_out(reading)
        return reading.train, reading.validation

    def _divided(self, splits: Mapping[str, Labelled]) -> dict[str, Labelled]:
        divided = dict(splits)
        if "test" not in divided:
            assert not isinstance(self.test, str)  # a source without a test split was asked for a share
            divided["train"], divided["test"] = with_test_share(divided["train"], self.test)
        if self.validation and "validation" in divided:
            origin = divided["validation"].origin
            raise DataError(f"{origin}: the source brings its own validation split; leave out `validation`")
        if self.validation:
            divided["train"], divided["validation"] = held_out(divided["train"], self.validation)
        return divided

    def _decoded(self, splits: Mapping[str, Labelled], directory: Path, progress: Progress) -> dict[str, RawSamples]:
        preparations = {name: self._preparation(name) for name in splits}
        needed = sum(3 * preparations[name].size ** 2 * len(splits[name].pictures) for name in splits)
        folder = None if self.cache is None else directory / self.cache.expanduser()
        total = sum(len(samples.pictures) for samples in splits.values())
        decoded: dict[str, RawSamples] = {}
        problems: list[Problem] = []
        with (
            progress.track("decodes images", total) as tracker,
            Workers(self.workers or default_workers(), tracker) as workers,
        ):
            storage = Storage(folder, self.memory_bytes, workers)
            storage.demand_room(needed, f"the {total:,} images")
            for name, samples in splits.items():
                pixels, found = storage.pixels(samples.pictures, samples.digests, preparations[name])
                problems += found
                decoded[name] = RawSamples(
                    {INPUT: pixels},
                    samples.target,
                    samples.origin,
                    crop=None if preparations[name].size == self.size else self.size,
                    pictures=PictureInput(samples.pictures, preparations[name]),
                )
        if problems:
            raise DataError(_told(problems, total))
        return decoded

    def _preparation(self, split: str) -> Preparation:
        """Images of which random parts are taken are kept up to their shorter sides."""
        resize = self.resize or self.size
        if split == "train" and "random_resized_crop" in self.augment:
            return Preparation(resize, resize)
        return Preparation(resize, self.size)


def _count(copies: list[str]) -> str:
    return "1 image occurs" if len(copies) == 1 else f"{len(copies)} images occur"


def _told(problems: list[Problem], total: int) -> str:
    lines = listed([f"{problem.name}: {problem.reason}" for problem in problems])
    return f"{len(problems)} of {total:,} images cannot be decoded:{lines}\nreplace or remove them"
