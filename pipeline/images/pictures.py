"""Encoded images by their number, wherever they lie, and how they are prepared."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray


class Pictures(ABC):
    """Some encoded images in order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, number: int) -> str:
        """What a person finds the image by."""

    @abstractmethod
    def encoded(self, number: int) -> bytes:
        """The image as it is stored. OSError where it cannot be read."""

    @abstractmethod
    def at(self, numbers: NDArray[np.int64]) -> Self:
        """The images of these numbers."""

    def file(self, number: int, folder: Path) -> Path:
        """A file that holds the image; one in `folder` is made where there is none."""
        made = folder / f"{number}"
        made.write_bytes(self.encoded(number))
        return made


class FilePictures(Pictures):
    """Images in files of their own."""

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        self._files = tuple(files)
        self._root = root

    def __len__(self) -> int:
        return len(self._files)

    def name(self, number: int) -> str:
        """The path from the data set's folder."""
        return self._files[number].relative_to(self._root).as_posix()

    def encoded(self, number: int) -> bytes:
        """The file's content."""
        return self._files[number].read_bytes()

    def at(self, numbers: NDArray[np.int64]) -> Self:
        """The images of these numbers."""
        return type(self)([self._files[int(number)] for number in numbers], self._root)

    def file(self, number: int, folder: Path) -> Path:
        """The file itself."""
        return self._files[number]


@dataclass(frozen=True)
class Preparation:
    """What is done with an image before it is a sample; `decoding.decoded` says it in full."""

    resize: int
    """To how many pixels the shorter side is brought."""
    size: int
    """Height and width in pixels of the middle that is kept."""


@dataclass(frozen=True)
class PictureInput:
    """The encoded images that the samples of an input were decoded from, and how."""

    pictures: Pictures
    preparation: Preparation
