"""The images below a folder, by the class folders that they lie in."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .division import Labelled
from .pictures import FilePictures

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SHOWN = 10
"""How many folders a message lists."""


@dataclass(frozen=True)
class ClassFolders:
    """The images of one split."""

    folder: Path
    files: dict[str, tuple[Path, ...]]
    """By the class folder's name, both in order; nothing depends on the order in which a disk lists them."""
    others: Counter[str]
    """How many files are no images, by their ending."""

    @classmethod
    def of(cls, folder: Path) -> "ClassFolders":
        """DataError where the folder has no class folders, or one of them no images."""
        names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        if not names:
            raise DataError(
                f"{folder}: has no folders; the images of each class lie in a folder of the class's name, such as "
                f"{folder / 'cat' / '1.jpg'}"
            )
        files: dict[str, tuple[Path, ...]] = {}
        others: Counter[str] = Counter()
        for name in names:
            below = list(_files(folder / name))
            files[name] = tuple(sorted(file for file in below if file.suffix.lower() in ENDINGS))
            others.update(file.suffix.lower() or file.name for file in below if file.suffix.lower() not in ENDINGS)
        empty = [name for name in names if not files[name]]
        if empty:
            raise DataError(
                f"{folder}: no images ({', '.join(ENDINGS)}) in {_some(empty)}; remove empty folders, or fill them"
            )
        return cls(folder, files, others)

    def labelled(self, classes: tuple[str, ...], root: Path) -> Labelled:
        """With class numbers; DataError where a class of theirs is none of `classes`."""
        unknown = [name for name in self.files if name not in classes]
        if unknown:
            raise DataError(
                f"{self.folder}: {_some(unknown)} {'is' if len(unknown) == 1 else 'are'} not among the training "
                f"classes ({_some(list(classes))}); name the folders alike in every split"
            )
        files = [file for name in classes for file in self.files.get(name, ())]
        counts = [len(self.files.get(name, ())) for name in classes]
        target = np.repeat(np.arange(len(classes)), counts)
        return Labelled.of(FilePictures(files, root), target, str(self.folder))


def _files(folder: Path) -> Iterator[Path]:
    """Everything below, links followed, but for hidden files."""
    entered: set[str] = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link that leads back
            names.clear()
            continue
        entered.add(real)
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(parent) / name for name in files if not name.startswith("."))


def left_out(splits: list[ClassFolders]) -> str:
    """A few words on the files that are no images; empty where there are none."""
    others: Counter[str] = Counter()
    for split in splits:
        others.update(split.others)
    if not others:
        return ""
    endings = ", ".join(sorted(others)[:SHOWN])
    return f"; {others.total()} other files left out ({endings})"


def not_tested(classes: tuple[str, ...], tested: ClassFolders | None) -> str:
    """A few words on the classes that no test image is of; empty where there are none."""
    lacking = [] if tested is None else [name for name in classes if name not in tested.files]
    return f"; no test images of {_some(lacking)}" if lacking else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
