"""Files of texts with a class each."""

import csv
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from .errors import DataError

FORMS = (".npz", ".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Texts:
    """One file's contents."""

    texts: list[str]
    labels: list[int] | list[str]
    """Class numbers, or names where one of them is no number."""
    origin: str


def file_of(folder: Path, name: str) -> Path:
    """The file of a split in a folder: `name`, or the only one that is called so but for its ending."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `data.path` must name the folder of the texts' files")
    if Path(name).suffix in FORMS:
        found = [folder / name] if (folder / name).is_file() else []
    else:
        found = [file for ending in FORMS if (file := folder / f"{name}{ending}").is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{folder} has {' and '.join(file.name for file in found)}; name one of them with its ending")
    there = sorted(file.name for file in folder.iterdir() if file.suffix in FORMS)
    raise DataError(
        f"{folder} has no file {name!r} of texts ({', '.join(FORMS)}); it has {', '.join(there) or 'none at all'}"
    )


def read_texts(file: Path, text: str, label: str) -> Texts:
    """The texts and labels of a file; DataError where it is damaged, or lacks the column `text` or `label`.

    ``.npz`` files hold UTF-8 texts joined by line breaks in the bytes `text`, and class numbers in `y`. ``.tsv`` files
    know no quotation marks, ``.csv`` files do; both begin with a line of the columns' names.
    """
    if file.suffix == ".npz":
        return _from_npz(file)
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]]] = {
        ".tsv": lambda each: _table(each, delimiter="\t", quoting=csv.QUOTE_NONE),
        ".csv": lambda each: _table(each, delimiter=",", quoting=csv.QUOTE_MINIMAL),
        ".jsonl": _json_lines,
    }
    texts: list[str] = []
    labels: list[Any] = []
    try:
        for line, row in readers[file.suffix](file):
            texts.append(str(_cell(row, text, file, line)))
            labels.append(_cell(row, label, file, line))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not written in UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return Texts(_sound(texts, file), _numbers_or_names(labels, file), str(file))


def _from_npz(file: Path) -> Texts:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in ("text", "y") if key not in archive]
            if missing:
                raise DataError(
                    f"{file} has no array {missing[0]!r}, only {', '.join(archive) or 'none'}; write it with "
                    'numpy.savez(file, text=numpy.frombuffer("\\n".join(texts).encode(), "uint8"), y=labels)'
                )
            texts, labels = archive["text"].tobytes().decode().split("\n"), np.asarray(archive["y"])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(f"{file} is not a readable .npz file of texts ({error}); write it or copy it again") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{file}: y is {labels.dtype} of shape {labels.shape}; it must hold one whole number a text")
    if len(labels) != len(texts):
        raise DataError(f"{file} holds {len(texts)} texts and {len(labels)} labels; texts must hold no line breaks")
    return Texts(_sound(texts, file), [int(each) for each in labels], str(file))


def _table(file: Path, *, delimiter: str, quoting: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # The default limit of 128 kB a field is for files that are not trusted to be tables.
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, delimiter=delimiter, quoting=quoting)
        for row in rows:
            yield rows.line_num, row


def _json_lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with file.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number}: must be an object such as {{'text': …, 'label': …}}")
            yield number, cast("dict[str, Any]", row)


def _cell(row: Mapping[str, Any], key: str, file: Path, line: int) -> Any:
    found = row.get(key)
    if found is None:
        named = ", ".join(map(str, row))
        raise DataError(
            f"{file}, line {line}: has no {key!r}; it has {named or 'nothing'}. Say what the columns are called by "
            "`text` and `label`"
        )
    return found


def _sound(texts: list[str], file: Path) -> list[str]:
    if not texts:
        raise DataError(f"{file} holds no texts")
    empty = next((number for number, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise DataError(f"{file}: text {empty} (from 0) is empty; remove it")
    return texts


def _numbers_or_names(labels: list[Any], file: Path) -> list[int] | list[str]:
    wrong = [repr(label) for label in labels if not isinstance(label, str) and type(label) is not int]
    if wrong:
        raise DataError(f"{file}: a label is {wrong[0]}; labels are whole numbers from 0, or names")
    names = [str(label).strip() for label in labels]
    return [int(name) for name in names] if all(name.isdecimal() for name in names) else names
