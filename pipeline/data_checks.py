"""From arrays as a source read them to tensors that can be trained on, or an error that says what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class RawSamples:
    """One split as a source read it; anything that NumPy makes arrays of."""

    inputs: Mapping[str, object]
    """By input name, the samples along the first axis; images are (N, C, H, W)."""
    target: object
    """Class numbers from 0, one a sample."""
    origin: str
    """Where it was read, for messages: a file, or a function's result."""


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


@dataclass(frozen=True)
class Samples:
    """One split, checked."""

    inputs: dict[str, Tensor]
    """uint8 as read; other images and all fractions in float32; other whole numbers in int64."""
    target: Tensor
    """int64, shape (N,)."""
    origin: str

    def at(self, index: Tensor) -> "Samples":
        """The samples at these positions."""
        return Samples({name: x[index] for name, x in self.inputs.items()}, self.target[index], self.origin)


@dataclass(frozen=True)
class CheckedReading:
    """What a source read, fit to be trained on."""

    train: Samples
    test: Samples
    validation: Samples | None
    classes: tuple[str, ...]
    description: str


def checked(reading: Reading) -> CheckedReading:
    """The reading as tensors. DataError, with the place and the mend, for anything that cannot be trained on."""
    train = _samples(reading.train)
    others = [_samples(raw) for raw in (reading.test, reading.validation) if raw is not None]
    for other in others:
        _check_alike(train, other)
    classes = _classes(reading.classes, train)
    for samples in (train, *others):
        _check_range(samples, len(classes))
    return CheckedReading(train, others[0], others[1] if others[1:] else None, classes, reading.description)


def _samples(raw: RawSamples) -> Samples:
    if not raw.inputs:
        raise DataError(f"{raw.origin} holds no inputs; give an array of samples, or a dict of arrays by input name")
    target = _target(raw.target, f"{raw.origin}: the labels")
    inputs: dict[str, Tensor] = {}
    for name, values in raw.inputs.items():
        where = f"{raw.origin}: {name}"
        array = array_of(values, where)
        if array.ndim == 0 or len(array) != len(target):
            count = len(array) if array.ndim else "no"
            raise DataError(f"{where} holds {count} samples for {len(target)} labels; there must be one label a sample")
        inputs[name] = _tensor(array, where)
    if len(target) == 0:
        raise DataError(f"{raw.origin} holds no samples; check how the split was made")
    return Samples(inputs, target, raw.origin)


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


def _target(values: object, where: str) -> Tensor:
    array = array_of(values, where)
    if array.dtype.kind not in "iu":
        fractions = np.flatnonzero(array.astype(np.float64) % 1) if array.ndim == 1 else np.empty(0)
        found = f"{array.dtype}" + (f" values such as {array[int(fractions[0])]:g}" if len(fractions) else "")
        raise DataError(f"{where} are {found}; they must be whole numbers from 0: use y.astype('int64')")
    if array.ndim != 1:
        mend = "y.argmax(1), if they are one-hot" if array.ndim == 2 and array.shape[1] > 1 else "y.reshape(-1)"
        raise DataError(f"{where} have the shape {array.shape}; there must be one number a sample: use {mend}")
    return torch.as_tensor(np.require(array, np.int64, ["C", "W"]))


def _check_alike(train: Samples, other: Samples) -> None:
    for name in sorted({*train.inputs, *other.inputs}):
        if name not in train.inputs or name not in other.inputs:
            lacking = (other if name in train.inputs else train).origin
            raise DataError(f"{lacking} lacks the input {name!r}, which the other split has; every split needs all")
        first, second = train.inputs[name], other.inputs[name]
        if first.shape[1:] != second.shape[1:]:
            raise DataError(
                f"{other.origin}: {name} has samples of shape {tuple(second.shape[1:])}, but {train.origin} has "
                f"{tuple(first.shape[1:])}; bring both to one size"
            )
        if first.dtype != second.dtype:
            raise DataError(
                f"{other.origin}: {name} is {_kind(second)}, but in {train.origin} it is {_kind(first)}; "
                "store both in one type, so that they are normalised alike"
            )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
