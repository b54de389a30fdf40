"""From arrays as a source read them to tensors that can be trained on, or an error that says what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import DataError
from .images.pictures import PictureInput
from .tokenizer import Text

Array = NDArray[Any]
Targets = Literal["classes", "numbers", "any"]
"""What a task takes: a class's number a sample; numbers of one shape a sample; or whatever the user's own task does."""


@dataclass(frozen=True)
class RawSamples:
    """One split as a source read it; anything that NumPy makes arrays of."""

    inputs: Mapping[str, object]
    """By input name, the samples along the first axis; images are (N, C, H, W)."""
    target: object
    """Class numbers from 0, one a sample; for other tasks than a classification, an array (N, …)."""
    origin: str
    """Where it was read, for messages: a file, or a function's result."""
    crop: int | None = None
    """Height and width of the part of each image that is seen: its middle, or where `augment` says; None for all."""
    pictures: PictureInput | None = None
    """What the only input was decoded from, if it was."""
    waveforms: frozenset[str] = frozenset()
    """The names of inputs that are sound: int16 (N, samples), which stays int16."""
    groups: object = None
    """What tells apart the samples that must not be parted by a split, such as speakers: one number or name each."""


@dataclass(frozen=True)
class Reading:
    """What a source read."""

    train: RawSamples
    test: RawSamples
    description: str
    """What the data is, for people."""
    validation: RawSamples | None = None
    classes: Sequence[str] | None = None
    """The classes' names in order of their numbers; without, they are counted in train and called by their numbers."""
    text: Text | None = None
    """What the samples were before they were numbers, where they were texts."""


@dataclass(frozen=True)
class Samples:
    """One split, checked."""

    inputs: dict[str, Tensor]
    """uint8 and sound in int16 as read; other images and all fractions in float32; other whole numbers in int64."""
    target: Tensor
    """Classes: int64 (N,). Numbers: float32 (N, …), those of one number a sample (N, 1). Else either, (N, …)."""
    origin: str
    crop: int | None = None
    pictures: PictureInput | None = None
    groups: Tensor | None = None
    """int64 (N,): samples of one number go into one split; None where each may go anywhere."""

    def at(self, index: Tensor) -> "Samples":
        """The samples at these positions."""
        inputs = {name: x[index] for name, x in self.inputs.items()}
        groups = None if self.groups is None else self.groups[index]
        return replace(self, inputs=inputs, target=self.target[index], groups=groups, pictures=None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a sample as it is seen."""
        return seen_shape(tuple(self.inputs[name].shape[1:]), self.crop)


def seen_shape(stored: tuple[int, ...], crop: int | None) -> tuple[int, ...]:
    """Of what is seen of a sample: an image's part where there is a crop."""
    return stored if crop is None or len(stored) != 3 else (stored[0], crop, crop)


@dataclass(frozen=True)
class CheckedReading:
    """What a source read, fit to be trained on."""

    train: Samples
    test: Samples
    validation: Samples | None
    classes: tuple[str, ...]
    """Empty where the targets are no class numbers."""
    description: str


def checked(reading: Reading, targets: Targets = "classes") -> CheckedReading:
    """The reading as tensors. DataError, with the place and the mend, for anything that cannot be trained on."""
    train = _samples(reading.train, targets)
    others = [_samples(raw, targets) for raw in (reading.test, reading.validation) if raw is not None]
    for other in others:
        _check_alike(train, other)
    if targets != "classes" and len(others[0].target) < 2:
        raise DataError(f"{reading.test.origin} holds one sample; two are needed to say how sure its measure is")
    classes = _classes_for(targets, reading.classes, (train, *others))
    return CheckedReading(train, others[0], others[1] if others[1:] else None, classes, reading.description)


def _samples(raw: RawSamples, targets: Targets) -> Samples:
    if not raw.inputs:
        raise DataError(f"{raw.origin} holds no inputs; give an array of samples, or a dict of arrays by input name")
    called = "labels" if targets == "classes" else "targets"
    target = _READERS[targets](raw.target, f"{raw.origin}: the {called}")
    inputs: dict[str, Tensor] = {}
    for name, values in raw.inputs.items():
        where = f"{raw.origin}: {name}"
        array = array_of(values, where)
        if array.ndim == 0 or len(array) != len(target):
            count = len(array) if array.ndim else "no"
            raise DataError(
                f"{where} holds {count} samples for {len(target)} {called}; there must be one {called[:-1]} a sample"
            )
        is_sound = name in raw.waveforms
        inputs[name] = torch.as_tensor(np.require(array, np.int16, ["C", "W"])) if is_sound else _tensor(array, where)
    if len(target) == 0:
        raise DataError(f"{raw.origin} holds no samples; check how the split was made")
    groups = None if raw.groups is None else _groups(raw.groups, target, raw.origin)
    return Samples(inputs, target, raw.origin, raw.crop, raw.pictures, groups)


def _groups(values: object, target: Tensor, origin: str) -> Tensor:
    names = np.asarray(values)
    if names.shape != (len(target),):
        raise DataError(
            f"{origin}: there are groups of the shape {names.shape} for {len(target)} samples; give one each"
        )
    return torch.as_tensor(np.unique(names, return_inverse=True)[1].astype(np.int64))


def array_of(values: object, where: str) -> Array:
    """The numbers as an array; DataError where they are no rectangular block, such as images of unequal size."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{where}: {_unequal(values) or error}") from error
    if array.dtype == object:
        raise DataError(f"{where}: {_unequal(values) or 'holds objects, not numbers; give one numeric array'}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {array.dtype} values, not numbers; give a numeric array")
    return array


def _unequal(values: object) -> str | None:
    """A sentence on the first sample whose size differs from the first one's, if there is one."""
    if not isinstance(values, Sequence | np.ndarray):
        return None
    shapes = [np.shape(cast(Any, sample)) for sample in cast("Sequence[object]", values)]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            return (
                f"samples of unequal size: sample 0 is {shapes[0]}, sample {number} is {shape}; "
                "bring all to one size first, by resizing or padding"
            )
    return None


def _tensor(array: Array, where: str) -> Tensor:
    if array.dtype == np.uint8:
        if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] > 4:
            raise DataError(
                f"{where} has the shape {array.shape}, which looks like channels last; images are (N, C, H, W): "
                "use x.transpose(0, 3, 1, 2)"
            )
        return torch.as_tensor(np.require(array, requirements=["C", "W"]))
    if array.dtype.kind in "iu" and array.ndim != 4:
        return torch.as_tensor(np.require(array, np.int64, ["C", "W"]))
    _check_finite(array, where)
    return torch.as_tensor(np.require(array, np.float32, ["C", "W"]))


def _check_finite(array: Array, where: str) -> None:
    finite = np.isfinite(array)
    if finite.all():
        return
    bad = (~finite).reshape(len(array), -1).sum(1)
    positions = np.flatnonzero(bad)
    raise DataError(
        f"{where} holds {int(bad.sum())} values that are NaN or infinite, in {len(positions)} of {len(array)} samples, "
        f"first in sample {positions[0]}; repair or remove these samples"
    )


def _class_numbers(values: object, where: str) -> Tensor:
    array = array_of(values, where)
    if array.dtype.kind not in "iu":
        fractions = np.flatnonzero(array.astype(np.float64) % 1) if array.ndim == 1 else np.empty(0)
        found = f"{array.dtype}" + (f" values such as {array[int(fractions[0])]:g}" if len(fractions) else "")
        raise DataError(
            f"{where} are {found}; they must be whole numbers from 0: use y.astype('int64'), "
            "or `task: regression` where they are what a model is to come near to"
        )
    if array.ndim != 1:
        mend = "y.argmax(1), if they are one-hot" if array.ndim == 2 and array.shape[1] > 1 else "y.reshape(-1)"
        raise DataError(f"{where} have the shape {array.shape}; there must be one number a sample: use {mend}")
    return torch.as_tensor(np.require(array, np.int64, ["C", "W"]))


def _numbers(values: object, where: str) -> Tensor:
    """One number a sample becomes (N, 1), which is what a layer of one output gives."""
    array = array_of(values, where)
    if array.dtype.kind != "f":
        raise DataError(
            f"{where} are {array.dtype}; a regression takes fractions: use y.astype('float32'), "
            "or `task: classification` where they are the numbers of classes"
        )
    target = _anything(array, where)
    return target[:, None] if target.ndim == 1 else target


def _anything(values: object, where: str) -> Tensor:
    array = array_of(values, where)
    if array.ndim == 0 or (len(array) and not array[0].size):
        raise DataError(f"{where} have the shape {array.shape}; there must be one array of numbers a sample (N, …)")
    if array.dtype.kind in "iu":
        return torch.as_tensor(np.require(array, np.int64, ["C", "W"]))
    _check_finite(array, where)
    return torch.as_tensor(np.require(array, np.float32, ["C", "W"]))


_READERS = {"classes": _class_numbers, "numbers": _numbers, "any": _anything}


def _check_alike(train: Samples, other: Samples) -> None:
    if train.target.shape[1:] != other.target.shape[1:] or train.target.dtype != other.target.dtype:
        raise DataError(
            f"{other.origin}: the targets are {_kind(other.target)} of shape {tuple(other.target.shape[1:])} a sample, "
            f"but in {train.origin} they are {_kind(train.target)} of shape {tuple(train.target.shape[1:])}; "
            "bring both to one shape and type"
        )
    for name in sorted({*train.inputs, *other.inputs}):
        if name not in train.inputs or name not in other.inputs:
            lacking = (other if name in train.inputs else train).origin
            raise DataError(f"{lacking} lacks the input {name!r}, which the other split has; every split needs all")
        first, second = train.inputs[name], other.inputs[name]
        if train.shape(name) != other.shape(name):
            raise DataError(
                f"{other.origin}: {name} has samples of shape {other.shape(name)}, but {train.origin} has "
                f"{train.shape(name)}; bring both to one size"
            )
        if first.dtype != second.dtype:
            raise DataError(
                f"{other.origin}: {name} is {_kind(second)}, but in {train.origin} it is {_kind(first)}; "
                "store both in one type, so that they are normalised alike"
            )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _classes_for(targets: Targets, names: Sequence[str] | None, splits: Sequence[Samples]) -> tuple[str, ...]:
    """A task of the user's own has classes where the source names them, or where the labels count them."""
    if targets == "numbers" and names is not None:
        raise DataError(f"{splits[0].origin}: a regression has no classes; leave `classes` out")
    if targets == "numbers" or (targets == "any" and names is None and not _count_classes(splits)):
        return ()
    if targets == "any" and names is not None and not _is_class_numbers(splits[0].target):
        return tuple(names)
    classes = _classes(names, splits[0])
    for samples in splits:
        _check_range(samples, len(classes))
    return classes


def _is_class_numbers(target: Tensor) -> bool:
    return target.ndim == 1 and not target.is_floating_point()


def _count_classes(splits: Sequence[Samples]) -> bool:
    """Whether all targets are whole numbers from 0, one a sample, and those of train leave none out."""
    if not all(_is_class_numbers(samples.target) for samples in splits):
        return False
    present: list[int] = np.unique(splits[0].target.numpy()).tolist()
    highest = max(int(samples.target.max()) for samples in splits)
    return present == list(range(max(highest + 1, 2)))


def _classes(names: Sequence[str] | None, train: Samples) -> tuple[str, ...]:
    present: list[int] = np.unique(train.target.numpy()).tolist()
    if len(present) < 2:
        raise DataError(
            f"{train.origin}: all {len(train.target)} labels are {present[0]}; a classifier needs two classes"
        )
    if names is not None:
        if len(set(names)) != len(names):
            raise DataError(f"{train.origin}: the class names must differ: {', '.join(names)}")
        return tuple(names)
    highest = present[-1]
    if len(present) != highest + 1 and present[0] >= 0:
        absent = next(number for number in range(highest + 1) if number >= len(present) or present[number] != number)
        raise DataError(
            f"{train.origin}: labels are out of range: they go up to {highest}, but only {len(present)} occur and "
            f"no sample has the label {absent}; number the classes from 0 to {len(present) - 1}, "
            "or name them all with `classes:` if one has no samples"
        )
    return tuple(str(number) for number in range(highest + 1))


def _check_range(samples: Samples, num_classes: int) -> None:
    wrong = ((samples.target < 0) | (samples.target >= num_classes)).nonzero().flatten()
    if len(wrong):
        raise DataError(
            f"{samples.origin}: {len(wrong)} labels are out of range, first {int(samples.target[wrong[0]])} at sample "
            f"{int(wrong[0])}; with {num_classes} classes they must be 0 to {num_classes - 1}"
        )
