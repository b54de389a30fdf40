"""Data sets held in memory, and the sources they are read from.

A source is one file in `sources/`: a subclass of `DataSource`; its fields are its YAML keys, its `read` returns arrays.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import BaseModel, Field, JsonValue
from torch import Tensor

from .augmentation import AnyDraws, Augmentation, Draws, View, centred
from .data_checks import CheckedReading, Reading, Samples, Targets, checked, seen_shape
from .errors import DataError
from .fingerprints import fingerprint
from .front_end import FrontEnd
from .images.pictures import PictureInput
from .lengths import cut, lengths_of, order_by_length
from .normalization import Normalization, Normalize, normalizations_of
from .progress import Progress, Silent
from .registry import discovered
from .seeding import generator as seeded_generator
from .strong_augmentation import StrongDraws, strongly_augmented
from .tokenizer import Text

SPLIT_SEED = 0
"""Which samples are held out is not up to the run's seed: runs of different seeds are measured on the same images."""
VIEW_SEED = 0
"""Nor is what a numbered view looks like: runs of different seeds share the teacher's stored outputs."""


DrawsOf = Callable[[View, int], AnyDraws]
"""Draws how a view changes so many samples."""


@dataclass(frozen=True)
class Batch:
    """Some samples of a split."""

    inputs: dict[str, Tensor]
    """By input name; images are normalised float32 of shape (B, C, H, W), waveforms float32 (B, samples)."""
    target: Tensor
    """int64 class numbers (B,); for a regression float32 (B, …); for the user's own task either."""
    index: Tensor
    """The samples' positions in their split, shape (B,)."""
    view: View | None = None
    """The view that the inputs are augmented by; None for inputs as they were read."""


class Split:
    """The samples of one split: stored as read (uint8 where the pixels are), normalised when a batch is taken.

    Samples of unequal length are stored padded to the longest of all; a batch is cut to the longest of its own.
    """

    def __init__(
        self,
        inputs: dict[str, Tensor],
        target: Tensor,
        *,
        normalizations: dict[str, Normalization],
        augment: tuple[str, ...] = (),
        draws: DrawsOf | None = None,
        crop: int | None = None,
        pictures: PictureInput | None = None,
    ) -> None:
        self.target = target
        self.pictures = pictures
        """What the only input was decoded from, if it was."""
        self._crop = crop
        self._inputs = inputs
        self._normalizations = normalizations
        self._augment = augment
        self._draws_of = draws or partial(Draws.of, kinds=augment, crop=crop)
        self._lengths = lengths_of(inputs, "the samples")
        self._draws: dict[torch.device, tuple[View, AnyDraws]] = {}
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
        """By input name, as they are seen, without the batch axis; of a free length, the longest."""
        return {name: seen_shape(tuple(tensor.shape[1:]), self._crop) for name, tensor in self._inputs.items()}

    @property
    def lengths(self) -> Tensor | None:
        """How long each sample is, int64 (N,); None where all are equally long."""
        return self._lengths

    def order(self, batch_size: int, draws: torch.Generator) -> Tensor:
        """All positions in random order; of unequal samples, so that those of a batch are about equally long."""
        if self._lengths is None:
            return torch.randperm(len(self), generator=draws)
        return order_by_length(self._lengths, batch_size, draws)

    @property
    def raw(self) -> dict[str, Tensor]:
        """All inputs by name as they were read: not normalised, not augmented."""
        return centred(dict(self._inputs), self._crop)

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
        inputs, target = self._resident or (self._inputs, self.target)
        there = moved(index, target.device)
        return Batch(self._normalized(self._seen(inputs, index, there, view)), target[there], index, view)

    def strong(self, batch: Batch) -> Batch:
        """The same samples and view, changed further by strong augmentation. DataError where no input is an image."""
        view = batch.view or View(0, 0)
        index = batch.index.cpu()
        inputs = self._seen(self._inputs, index, index, batch.view)
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
            inputs = self._cut({name: tensor[start:end] for name, tensor in self._inputs.items()}, slice(start, end))
            inputs = centred(inputs, self._crop)
            yield Batch(self._normalized(inputs), self.target[start:end], torch.arange(start, end))

    def sha256(self) -> str:
        """Over every byte that a batch depends on."""
        digest = hashlib.sha256()
        for name, tensor in sorted({**self._inputs, "target": self.target}.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().data)
        seen = () if self._crop is None else (self._crop,)
        digest.update(repr((sorted(self._normalizations.items()), self._augment, *seen)).encode())
        return digest.hexdigest()

    def _seen(self, inputs: dict[str, Tensor], index: Tensor, there: Tensor, view: View | None) -> dict[str, Tensor]:
        """Of all samples those at `index`, which is `there` on the device of the samples."""
        seen = self._cut({name: tensor.index_select(0, there) for name, tensor in inputs.items()}, index)
        if view is None or not self._augment:
            return centred(seen, self._crop)
        return self._drawn(view, there.device).at(there).applied(seen, self._augment)

    def _cut(self, inputs: dict[str, Tensor], which: Tensor | slice) -> dict[str, Tensor]:
        return inputs if self._lengths is None else cut(inputs, int(self._lengths[which].max()))

    def _drawn(self, view: View, device: torch.device) -> AnyDraws:
        """How the view changes every sample; drawn once for all of its batches."""
        known = self._draws.get(device)
        if known is None or known[0] != view:
            known = self._draws[device] = (view, self._draws_of(view, len(self)).on(device))
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
    text: Text | None = None
    """The tokenizer, and what the test split was before it; None where samples are no texts."""
    rates: dict[str, int] = field(default_factory=dict[str, int])
    """Samples a second of the inputs that are waveforms."""
    front_end: FrontEnd | None = None
    """What makes maps of waveforms, as the first part of every model."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer knows; 0 where samples are no texts."""
        return 0 if self.text is None else self.text.tokenizer.size

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
        """The first test inputs, normalised; fewer where the test split is smaller.

        Of samples of unequal length, those whose length is nearest to the median.
        """
        return self.test.batch(self._typical[:batch_size]).inputs

    def timed(self, batch_size: int) -> dict[str, Tensor]:
        """What engines are timed on: as `example`, but from the start again where the test split is smaller."""
        return self.test.batch(self._typical[torch.arange(batch_size) % len(self.test)]).inputs

    @cached_property
    def _typical(self) -> Tensor:
        """The positions of the test split, the most typical samples first."""
        lengths = self.test.lengths
        if lengths is None:
            return torch.arange(len(self.test))
        return torch.sort((lengths - lengths.median()).abs(), stable=True).indices


class DataSource(BaseModel, ABC, frozen=True, extra="forbid"):
    """Where samples come from and how they are prepared; a subclass in `sources/` needs no registration."""

    source: str
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Samples in each step of a training."""
    validation: Annotated[int, Field(ge=0)] = 0
    """How many training samples are held out, each class in its share; 0 holds out none. Where the source tells groups
    of samples apart, such as speakers, whole groups are held out, drawn until there are so many samples."""
    normalize: Normalize = "dataset"
    """What is taken from the pixels and what they are divided by, in each channel."""
    augment: tuple[Augmentation, ...] = ()
    """Random changes of the training images, new in every epoch."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Let the changes repeat after so many epochs, alike in all runs: a teacher's outputs can then be stored."""
    license: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Whose the samples are and under which licence, in your words; bundles carry it as it is."""

    @abstractmethod
    def read(self, directory: Path, progress: Progress) -> Reading:
        """The samples as arrays; relative paths start at `directory`. DataError says what is wrong with them.

        `progress` is told of what takes long.
        """

    def load(self, directory: Path, targets: Targets = "classes", progress: Progress | None = None) -> Dataset:
        """Read, check, split and prepare. `directory` is the recipe's folder, where relative paths start.

        `targets` is what the task takes; without `progress`, nothing is told.
        """
        read = self.read(directory, progress or Silent())
        reading = checked(read, targets)
        train, validation = self.held_out(reading)
        self._check_augment(train)
        normalizations = self._normalizations(train)
        splits = {
            "train": _split(train, normalizations, self.augment, self._draws(train)),
            "test": _split(reading.test, normalizations),
        }
        if validation is not None:
            splits["validation"] = _split(validation, normalizations)
        classes = reading.classes
        front_end = self._front_end(splits["train"])
        return Dataset(
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits["test"],
            classes=classes,
            batch_size=self.batch_size,
            fingerprint=_fingerprint(splits, classes, self.batch_size, self.views, read.text, front_end),
            views=self.views,
            description=_description(reading.description, splits, classes),
            targets=targets,
            text=read.text,
            rates=self._rates(),
            front_end=front_end,
        )

    def _normalizations(self, train: Samples) -> dict[str, Normalization]:
        """What is done with each input before a model takes it."""
        return normalizations_of(train.inputs, self.normalize, train.origin)

    def _rates(self) -> dict[str, int]:
        """Samples a second of the inputs that are waveforms."""
        return {}

    def _front_end(self, train: Split) -> FrontEnd | None:
        """What makes maps of waveforms, fitted to the training split; None for inputs that models take as they are."""
        return None

    def _draws(self, train: Samples) -> DrawsOf:
        """How a view changes training samples."""
        return partial(Draws.of, kinds=self.augment, crop=train.crop)

    def held_out(self, reading: CheckedReading) -> tuple[Samples, Samples | None]:
        """Train without the samples of the validation split, and that split; a source may have its own way."""
        count = self.validation
        if count == 0:
            return reading.train, reading.validation
        if reading.validation is not None:
            raise DataError(
                f"{reading.validation.origin}: the source brings its own validation split; leave out `validation`"
            )
        demand_rest(reading.train.origin, count, len(reading.train.target))
        groups = reading.train.groups
        held, rest = stratified(reading.train.target, count) if groups is None else whole_groups(groups, count)
        if not len(rest):
            raise DataError(
                f"{reading.train.origin}: all samples are of one group, so none is left to train on; hold out none "
                "(`validation: 0`), or by other groups"
            )
        return reading.train.at(rest), reading.train.at(held)

    def _check_augment(self, train: Samples) -> None:
        if self.views is not None and not self.augment:
            raise DataError(f"{train.origin}: `views` counts augmented views, but nothing is augmented; leave it out")
        shapes = {name: tensor.shape[1:] for name, tensor in train.inputs.items() if tensor.ndim == 4}
        if {"random_crop", "random_resized_crop"} <= {*self.augment}:
            raise DataError(
                f"{train.origin}: `random_crop` and `random_resized_crop` each choose a part of an image; leave one out"
            )
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


def demand_rest(origin: str, count: int, total: int) -> None:
    """DataError where holding out `count` of `total` samples leaves too few to train on."""
    if count > total // 2:
        raise DataError(
            f"{origin}: `validation: {count}` would leave {max(total - count, 0)} of {total} samples "
            f"to train on; hold out at most half of them ({total // 2})"
        )


def whole_groups(groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The positions of whole groups, int64 numbers (N,), that hold `count` samples or just more, and the others.

    Both in ascending order. Which groups they are depends on the groups alone.
    """
    draws = seeded_generator(SPLIT_SEED, "groups")
    found = np.unique(groups.numpy())
    chosen = torch.zeros(len(groups), dtype=torch.bool)
    for position in torch.randperm(len(found), generator=draws):
        if int(chosen.sum()) >= count:
            break
        chosen |= groups == int(found[position])
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


def _split(
    samples: Samples,
    normalizations: dict[str, Normalization],
    augment: tuple[str, ...] = (),
    draws: DrawsOf | None = None,
) -> Split:
    return Split(
        samples.inputs,
        samples.target,
        normalizations=normalizations,
        augment=augment,
        draws=draws,
        crop=samples.crop,
        pictures=samples.pictures,
    )


def _fingerprint(
    splits: dict[str, Split],
    classes: tuple[str, ...],
    batch_size: int,
    views: int | None,
    text: Text | None,
    front_end: FrontEnd | None,
) -> str:
    hashes = {name: split.sha256() for name, split in splits.items()}
    fitted = [] if front_end is None else [front_end.model_dump(mode="json")]
    tokens = [] if text is None else [text.tokenizer.json]
    return fingerprint(cast(JsonValue, hashes), list(classes), batch_size, views, *tokens, *fitted)


def _description(title: str, splits: dict[str, Split], classes: tuple[str, ...]) -> str:
    shapes = " + ".join("x".join(map(str, shape)) or "scalar" for shape in splits["test"].input_shapes.values())
    counts = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    shape = "x".join(map(str, splits["test"].target.shape[1:])) or "scalar"
    targets = f"{len(classes)} classes" if classes else f"targets {shape}"
    absent = ", ".join(_without_samples(splits["train"], classes))
    return f"{title} {shapes}: {counts}, {targets}{f' (none of {absent} in train)' if absent else ''}"


def _without_samples(train: Split, classes: tuple[str, ...]) -> list[str]:
    """Classes that were named and that nothing can be learnt of."""
    if not classes or train.target.is_floating_point():
        return []
    counts = train.target.flatten().bincount(minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if not count]
