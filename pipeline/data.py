"""Data sets held in memory, and the sources they are read from.

A source is one file in `sources/`: a subclass of `DataSource`; its fields are its YAML keys, its `read` returns arrays.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import BaseModel, Field, JsonValue
from torch import Tensor

from .augmentation import Augmentation, Draws, View, augmented
from .data_checks import CheckedReading, Reading, Samples, Targets, checked
from .errors import DataError
from .fingerprints import fingerprint
from .normalization import Normalization, Normalize, normalizations_of
from .registry import discovered
from .seeding import generator as seeded_generator
from .strong_augmentation import StrongDraws, strongly_augmented

SPLIT_SEED = 0
"""Which samples are held out is not up to the run's seed: runs of different seeds are measured on the same images."""
VIEW_SEED = 0
"""Nor is what a numbered view looks like: runs of different seeds share the teacher's stored outputs."""


@dataclass(frozen=True)
class Batch:
    """Some samples of a split."""

    inputs: dict[str, Tensor]
    """By input name; images are normalised float32 of shape (B, C, H, W)."""
    target: Tensor
    """int64 class numbers (B,); for a regression float32 (B, …); for the user's own task either."""
    index: Tensor
    """The samples' positions in their split, shape (B,)."""
    view: View | None = None
    """The view that the inputs are augmented by; None for inputs as they were read."""


class Split:
    """The samples of one split: stored as read (uint8 where the pixels are), normalised when a batch is taken."""

    def __init__(
        self,
        inputs: dict[str, Tensor],
        target: Tensor,
        *,
        normalizations: dict[str, Normalization],
        augment: tuple[Augmentation, ...] = (),
    ) -> None:
        self.target = target
        self._inputs = inputs
        self._normalizations = normalizations
        self._augment = augment
        self._draws: dict[torch.device, tuple[View, Draws]] = {}
        self._resident: tuple[dict[str, Tensor], Tensor] | None = None
        self._strong_draws: tuple[View, StrongDraws] | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def augmented(self) -> bool:
        """Whether a batch taken with a generator differs from one taken without."""
        return bool(self._augment)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """By input name, without the batch axis."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self._inputs.items()}

    @property
    def raw(self) -> dict[str, Tensor]:
        """All inputs by name as they were read: not normalised, not augmented."""
        return dict(self._inputs)

    @property
    def normalizations(self) -> dict[str, Normalization]:
        """By the names of the inputs that have one."""
        return dict(self._normalizations)

    def settle(self, device: torch.device) -> None:
        """Keep the samples on a device, too, as they were read: batches are then made there, without a copy a step."""
        if device.type == "cpu":
            return
        self._resident = {name: tensor.to(device) for name, tensor in self._inputs.items()}, self.target.to(device)

    @property
    def nbytes(self) -> int:
        """What the samples take as they were read."""
        return sum(tensor.nbytes for tensor in (*self._inputs.values(), self.target))

    def batch(self, index: Tensor, *, view: View | None = None) -> Batch:
        """The samples at `index`, as they look in a view; without one, or without augmentation, as they were read.

        `index` is on the CPU; the batch's tensors are where the split has settled.
        """
        if self._resident is None:
            return Batch(self._normalized(self._seen(index, view)), self.target[index], index, view)
        inputs, target = self._resident
        there = moved(index, target.device)
        seen = {name: tensor.index_select(0, there) for name, tensor in inputs.items()}
        if view is not None and self._augment:
            seen = augmented(seen, self._augment, self._drawn(view, target.device).at(there))
        return Batch(self._normalized(seen), target[there], index, view)

    def strong(self, batch: Batch) -> Batch:
        """The same samples and view, changed further by strong augmentation. DataError where no input is an image."""
        view = batch.view or View(0, 0)
        index = batch.index.cpu()
        inputs = self._seen(index, batch.view)
        if not any(tensor.ndim == 4 for tensor in inputs.values()):
            raise DataError("a second, strongly augmented view needs images (C, H, W), and no input is one")
        if self._strong_draws is None or self._strong_draws[0] != view:
            self._strong_draws = (view, StrongDraws.of(view, len(self)))
        draws = self._strong_draws[1].at(index)
        for name, tensor in inputs.items():
            if tensor.ndim == 4:
                inputs[name] = strongly_augmented(tensor, draws, *self._ranges[name])
        return Batch(self._normalized(inputs), self.target[index], index, batch.view)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All samples in order, not augmented; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            end = min(start + batch_size, len(self))
            inputs = {name: tensor[start:end] for name, tensor in self._inputs.items()}
            yield Batch(self._normalized(inputs), self.target[start:end], torch.arange(start, end))

    def sha256(self) -> str:
        """Over every byte that a batch depends on."""
        digest = hashlib.sha256()
        for name, tensor in sorted({**self._inputs, "target": self.target}.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
        digest.update(repr((sorted(self._normalizations.items()), self._augment)).encode())
        return digest.hexdigest()

    def _seen(self, index: Tensor, view: View | None) -> dict[str, Tensor]:
        inputs = {name: tensor.index_select(0, index) for name, tensor in self._inputs.items()}
        if view is None or not self._augment:
            return inputs
        return augmented(inputs, self._augment, self._drawn(view, torch.device("cpu")).at(index))

    def _drawn(self, view: View, device: torch.device) -> Draws:
        """How the view changes every sample; drawn once for all of its batches."""
        known = self._draws.get(device)
        if known is None or known[0] != view:
            known = self._draws[device] = (view, Draws.of(view, len(self)).on(device))
        return known[1]

    @cached_property
    def _ranges(self) -> dict[str, tuple[float, float]]:
        """Between which values each input's pixels lie."""
        return {name: _range(tensor) for name, tensor in self._inputs.items()}

    def _normalized(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        known = self._normalizations
        return {name: known[name].apply(tensor) if name in known else tensor for name, tensor in inputs.items()}


@dataclass(frozen=True)
class Dataset:
    """What a run trains on, chooses on and is measured on."""

    train: Split
    validation: Split | None
    """Held out from train; choices are made on it."""
    test: Split
    """Read for measuring, never for choosing."""
    classes: tuple[str, ...]
    """Empty where the targets are no class numbers."""
    batch_size: int
    fingerprint: str
    """sha256 over all samples, labels and splits, the normalisation, the augmentation and the batch size."""
    views: int | None
    """How many distinct views of the training split there are; None: each epoch of each training has its own."""
    description: str
    """One line for people, such as ``handwritten digits 1x32x32: 1437 train, 360 test, 10 classes``."""
    targets: Targets = "classes"

    @property
    def num_classes(self) -> int:
        """How many outputs a classifier of this data has; 0 where there are no classes."""
        return len(self.classes)

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """What a model must give for one sample; None where only the user's own task knows."""
        if self.targets == "any":
            return None
        return (self.num_classes,) if self.targets == "classes" else tuple(self.test.target.shape[1:])

    @property
    def num_outputs(self) -> int:
        """How long a model's outputs for one sample are along their first axis: the logits, or a map's channels.

        For a task of the user's own, as many as there are classes, else as a sample's fractions have; else 0.
        """
        if self.classes or not self.test.target.is_floating_point():
            return self.num_classes
        return self.test.target.shape[1] if self.test.target.ndim > 1 else 1

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """By input name, without the batch axis."""
        return self.test.input_shapes

    def view(self, seed: int, epoch: int) -> View | None:
        """How the training split looks in an epoch of a training that has this seed."""
        if not self.train.augmented:
            return None
        return View(seed, epoch) if self.views is None else View(VIEW_SEED, epoch % self.views)

    def example(self, batch_size: int = 2) -> dict[str, Tensor]:
        """The first test inputs, normalised; fewer where the test split is smaller."""
        return self.test.batch(torch.arange(min(batch_size, len(self.test)))).inputs


class DataSource(BaseModel, ABC, frozen=True, extra="forbid"):
    """Where samples come from and how they are prepared; a subclass in `sources/` needs no registration."""

    source: str
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Samples in each step of a training."""
    validation: Annotated[int, Field(ge=0)] = 0
    """How many training samples are held out, each class in its share; 0 holds out none."""
    normalize: Normalize = "dataset"
    """What is taken from the pixels and what they are divided by, in each channel."""
    augment: tuple[Augmentation, ...] = ()
    """Random changes of the training images, new in every epoch."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Let the changes repeat after so many epochs, alike in all runs: a teacher's outputs can then be stored."""
    license: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Whose the samples are and under which licence, in your words; bundles carry it as it is."""

    @abstractmethod
    def read(self, directory: Path) -> Reading:
        """The samples as arrays; relative paths start at `directory`. DataError says what is wrong with them."""

    def load(self, directory: Path, targets: Targets = "classes") -> Dataset:
        """Read, check, split and prepare. `directory` is the recipe's folder, where relative paths start.

        `targets` is what the task takes.
        """
        reading = checked(self.read(directory), targets)
        train, validation = self._held_out(reading)
        self._check_augment(train)
        normalizations = normalizations_of(train.inputs, self.normalize, train.origin)
        splits = {
            "train": _split(train, normalizations, self.augment),
            "test": _split(reading.test, normalizations),
        }
        if validation is not None:
            splits["validation"] = _split(validation, normalizations)
        classes = reading.classes
        return Dataset(
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits["test"],
            classes=classes,
            batch_size=self.batch_size,
            fingerprint=_fingerprint(splits, classes, self.batch_size, self.views),
            views=self.views,
            description=_description(reading.description, splits, classes),
            targets=targets,
        )

    def _held_out(self, reading: CheckedReading) -> tuple[Samples, Samples | None]:
        """Train without the samples of the validation split, and that split."""
        count, total = self.validation, len(reading.train.target)
        if count == 0:
            return reading.train, reading.validation
        if reading.validation is not None:
            raise DataError(
                f"{reading.validation.origin}: the source brings its own validation split; leave out `validation`"
            )
        if count > total // 2:
            raise DataError(
                f"{reading.train.origin}: `validation: {count}` would leave {max(total - count, 0)} of {total} samples "
                f"to train on; hold out at most half of them ({total // 2})"
            )
        held, rest = stratified(reading.train.target, count)
        return reading.train.at(rest), reading.train.at(held)

    def _check_augment(self, train: Samples) -> None:
        if self.views is not None and not self.augment:
            raise DataError(f"{train.origin}: `views` counts augmented views, but nothing is augmented; leave it out")
        shapes = {name: tensor.shape[1:] for name, tensor in train.inputs.items() if tensor.ndim == 4}
        if self.augment and not shapes:
            raise DataError(
                f"{train.origin}: `augment` changes images (C, H, W), and no input is one; leave `augment` out"
            )
        if self.augment and len({shape[1:] for shape in shapes.values()}) > 1:
            raise DataError(
                f"{train.origin}: `augment` moves all image inputs alike, but their sizes differ "
                f"({', '.join(f'{name} {tuple(shape)}' for name, shape in shapes.items())}); leave `augment` out"
            )
        if self.augment and train.target.ndim > 2:
            raise DataError(
                f"{train.origin}: `augment` moves the images, but not the targets, which are maps of shape "
                f"{tuple(train.target.shape[1:])}; leave `augment` out, or give augmented pairs"
            )


def stratified(target: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` positions that hold each class in its share, and the other ones; both in ascending order.

    Of targets that are one number a sample, small and large ones get their share alike; of longer ones, chance decides.
    The choice depends on the targets alone.
    """
    draws = seeded_generator(SPLIT_SEED, "split")
    order = torch.randperm(len(target), generator=draws)
    by_class = order
    if target[0].numel() == 1:
        by_class = order[torch.sort(target.flatten()[order], stable=True).indices]
    # Evenly spaced picks from samples sorted by class give each class its share, to within one sample.
    picks = (torch.arange(count, dtype=torch.float64) + 0.5) * len(target) / count
    chosen = torch.zeros(len(target), dtype=torch.bool)
    chosen[by_class[picks.long()]] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU does not wait for it, as it does for memory that the system may move."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sources() -> dict[str, type[DataSource]]:
    """Every data source by name; ``python`` stands for any `file.py:function`."""
    return discovered(f"{__package__}.sources", DataSource, "source")


def _range(tensor: Tensor) -> tuple[float, float]:
    if tensor.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = (float(bound) for bound in torch.aminmax(tensor))
    return low, high if high > low else low + 1.0


def _split(samples: Samples, normalizations: dict[str, Normalization], augment: tuple[Augmentation, ...] = ()) -> Split:
    return Split(samples.inputs, samples.target, normalizations=normalizations, augment=augment)


def _fingerprint(splits: dict[str, Split], classes: tuple[str, ...], batch_size: int, views: int | None) -> str:
    hashes = {name: split.sha256() for name, split in splits.items()}
    return fingerprint(cast(JsonValue, hashes), list(classes), batch_size, views)


def _description(title: str, splits: dict[str, Split], classes: tuple[str, ...]) -> str:
    shapes = " + ".join("x".join(map(str, shape)) or "scalar" for shape in splits["test"].input_shapes.values())
    counts = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    shape = "x".join(map(str, splits["test"].target.shape[1:])) or "scalar"
    targets = f"{len(classes)} classes" if classes else f"targets {shape}"
    return f"{title} {shapes}: {counts}, {targets}"
