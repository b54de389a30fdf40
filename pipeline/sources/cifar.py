"""CIFAR-10 and CIFAR-100 as their author publishes them for C programs, unpacked or as the archive."""

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..data import DataSource
from ..data_checks import RawSamples, Reading
from ..errors import DataError
from ..progress import Progress

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Edition:
    """One of the two data sets."""

    title: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    """The file of the classes' names, one a line."""
    labels: int
    """Bytes before each image's pixels, the last of which is its class."""

    @property
    def files(self) -> tuple[str, ...]:
        """All that is read."""
        return (*self.train, self.test, self.names)


TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
EDITIONS = (
    Edition("cifar10", "cifar-10-binary.tar.gz", TRAIN, "test_batch.bin", "batches.meta.txt", 1),
    # A coarse class, which is not used, and a fine one.
    Edition("cifar100", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", "fine_label_names.txt", 2),
)


class Cifar(DataSource, frozen=True, extra="forbid"):
    """The *binary version* of CIFAR-10 or CIFAR-100 (Krizhevsky 2009): its archive, or the folder unpacked from it."""

    source: Literal["cifar"] = "cifar"
    path: Path
    """``cifar-10-binary.tar.gz`` or ``cifar-100-binary.tar.gz``, or the folder of ``.bin`` files that it unpacks to."""

    def read(self, directory: Path, progress: Progress) -> Reading:
        """Both splits as published: 50,000 and 10,000 images (3, 32, 32), uint8."""
        place = directory / self.path.expanduser()
        with _contents(place) as (edition, files):
            train, test = (_samples(files, names, edition, place) for names in (edition.train, (edition.test,)))
            classes = files.read(edition.names).decode("ascii", "replace").split()
        return Reading(train, test, edition.title, classes=classes)


class Files(ABC):
    """Some files by their names."""

    @abstractmethod
    def names(self) -> set[str]:
        """Of all."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """One of them."""


class Folder(Files):
    """Files on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> set[str]:
        """Of the files in the folder itself."""
        return {file.name for file in self._path.iterdir() if file.is_file()}

    def read(self, name: str) -> bytes:
        """The whole file."""
        return (self._path / name).read_bytes()


class Archive(Files):
    """Files in an archive, whatever folder they are in; nothing is unpacked to disk."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members = {PurePosixPath(each.name).name: each for each in archive.getmembers() if each.isfile()}

    def names(self) -> set[str]:
        """Without their folders."""
        return set(self._members)

    def read(self, name: str) -> bytes:
        """The whole file."""
        stream = self._archive.extractfile(self._members[name])
        assert stream is not None  # members are files
        return stream.read()


@contextmanager
def _contents(place: Path) -> Generator[tuple[Edition, Files]]:
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; {_how_to_get_it()}")
    if place.is_dir():
        folder = Folder(place)
        yield _edition(folder.names(), place), folder
        return
    try:
        with tarfile.open(place) as archive:
            files = Archive(archive)
            yield _edition(files.names(), place), files
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{place} is no readable archive ({error}); download it again from {HOME}") from error


def _edition(names: set[str], place: Path) -> Edition:
    for edition in EDITIONS:
        if edition.test in names:
            if missing := sorted(set(edition.files) - names):
                raise DataError(f"{place} lacks {', '.join(missing)}; download {edition.archive} again from {HOME}")
            return edition
    raise DataError(f"{place} holds no CIFAR in its binary version; {_how_to_get_it()}")


def _how_to_get_it() -> str:
    archives = " or ".join(edition.archive for edition in EDITIONS)
    return f"download {archives} (the version for C programs) from {HOME}"


def _samples(files: Files, names: tuple[str, ...], edition: Edition, place: Path) -> RawSamples:
    size = edition.labels + PIXELS
    rows: list[NDArray[np.uint8]] = []
    for name in names:
        content = files.read(name)
        if not content or len(content) % size:
            raise DataError(
                f"{place}: {name} has {len(content)} bytes, no multiple of the {size} of an image and its label: "
                f"it is cut off; unpack or download {edition.archive} again"
            )
        rows.append(np.frombuffer(content, np.uint8).reshape(-1, size))
    both = np.concatenate(rows)
    images = np.ascontiguousarray(both[:, edition.labels :]).reshape(-1, *SHAPE)
    return RawSamples({"image": images}, both[:, edition.labels - 1].astype(np.int64), f"{place}: {', '.join(names)}")
