"""What the columns of a table hold, and which of them are meant where a recipe names none."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images.pictures import Pictures
from .opening import Table, package

LABELS = ("label", "labels")
"""What a column of classes is called where none is told by its type."""
TEXTS = ("text", "sentence")
"""Likewise of texts."""


def image_column(table: Table, asked: str | None) -> str | None:
    """The column of images: the one asked for, or the only one; None where there is none. DataError where unclear."""
    images = _of_type(table, lambda feature: isinstance(feature, package().Image))
    if asked is None:
        return _only(table, images, (), "image")
    _demand_known(table, asked, "image")
    if asked not in images:
        raise DataError(f"column {asked!r} holds no images, but {table.features[asked]}; {_all(table)}")
    return asked


def text_column(table: Table, asked: str | None) -> str | None:
    """Likewise of texts."""
    texts = _of_type(table, lambda feature: getattr(feature, "dtype", "") in ("string", "large_string"))
    if asked is None:
        return _only(table, [name for name in texts if name not in LABELS], TEXTS, "text")
    _demand_known(table, asked, "text")
    if asked not in texts:
        raise DataError(f"column {asked!r} holds no texts, but {table.features[asked]}; {_all(table)}")
    return asked


def label_column(table: Table, asked: str | None) -> str:
    """The column of what is learnt: the one asked for, the only one of classes, or the one that is called so."""
    if asked is not None:
        _demand_known(table, asked, "label")
        return asked
    classes = _of_type(table, lambda feature: isinstance(feature, package().ClassLabel))
    found = _only(table, classes, LABELS, "label") or next((name for name in LABELS if name in table.features), None)
    if found is None:
        raise DataError(f"no column holds classes; name what is to be learnt with `label`; {_all(table)}")
    return found


def _of_type(table: Table, fits: Callable[[Any], bool]) -> list[str]:
    return [name for name, feature in table.features.items() if fits(feature)]


def _only(table: Table, found: Sequence[str], preferred: Sequence[str], key: str) -> str | None:
    if len(found) > 1:
        named = [name for name in preferred if name in found]
        if not named:
            raise DataError(f"several columns can be meant: {', '.join(found)}; choose one with `{key}`")
        return named[0]
    return found[0] if found else None


def _demand_known(table: Table, asked: str, key: str) -> None:
    if asked not in table.features:
        raise DataError(f"`{key}: {asked}` is no column; {_all(table)}")


def _all(table: Table) -> str:
    kinds = [f"{name} ({type(feature).__name__})" for name, feature in table.features.items()]
    return f"the columns are {', '.join(kinds)}"


def class_names(train: Table, label: str) -> tuple[str, ...] | None:
    """The classes in order of their numbers, where the column names them or holds their names; else None."""
    feature = train.features[label]
    if isinstance(feature, package().ClassLabel):
        return tuple(feature.names)
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        return tuple(sorted({str(name) for name in train[label][:]}))
    return None


def targets_of(table: Table, label: str, classes: tuple[str, ...] | None, origin: str) -> NDArray[Any]:
    """Class numbers, or the column's own numbers."""
    values: list[Any] = table[label][:]
    if any(value is None for value in values):
        raise DataError(f"{origin}: {sum(value is None for value in values)} rows have no {label!r}; remove them")
    if classes is None or not isinstance(values[0], str):
        return np.asarray(values)
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    unknown = sorted({value for value in values if value not in numbers})
    if unknown:
        raise DataError(
            f"{origin}: {label!r} has {', '.join(unknown[:10])}, which the training rows do not have; their classes "
            f"are {', '.join(classes[:10])}"
        )
    return np.array([numbers[value] for value in values], np.int64)


class TablePictures(Pictures):
    """The images of a column, in the table itself or in files that it names."""

    def __init__(self, table: Table, column: str, split: str, rows: NDArray[np.int64] | None = None) -> None:
        self._table = table
        self._column = column
        self._split = split
        self._rows = np.arange(len(table)) if rows is None else rows

    @classmethod
    def of(cls, table: Table, column: str, split: str) -> Self:
        """Of a column that the package would decode itself."""
        encoded = table.select_columns([column]).cast_column(column, package().Image(decode=False))
        return cls(encoded, column, split)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, number: int) -> str:
        """The split and the row, with the file's name where it is known."""
        row = int(self._rows[number])
        stored = self._table[row][self._column]
        path = "" if stored is None else stored["path"]
        return f"{self._split}[{row}]" + (f" ({Path(path).name})" if path else "")

    def encoded(self, number: int) -> bytes:
        """The row's bytes, or those of the file that it names."""
        stored = self._table[int(self._rows[number])][self._column]
        if stored is None:
            return b""
        return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()

    def at(self, numbers: NDArray[np.int64]) -> Self:
        """The images of these numbers."""
        return type(self)(self._table, self._column, self._split, self._rows[numbers])
