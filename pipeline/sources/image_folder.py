"""Images in folders called like their classes."""

from pathlib import Path
from typing import Literal

from ..data_checks import Reading
from ..errors import DataError
from ..images.folder import ClassFolders, left_out, not_tested
from ..images.source import PictureSource
from ..progress import Progress

VALIDATION = ("validation", "valid", "val")
"""Folders that are chosen on where they are there, and not measured on."""


class ImageFolder(PictureSource, frozen=True, extra="forbid"):
    """JPEG, PNG and other images as `train/<class>/…` and `test/<class>/…`, or `<class>/…` alone with `test: 0.2`."""

    source: Literal["image_folder"] = "image_folder"
    path: Path
    """The folder; a relative path starts at the recipe's."""

    def read(self, directory: Path, progress: Progress) -> Reading:
        """All splits, as uint8 images (N, 3, size, size); the classes are the training folders."""
        root = directory / self.path.expanduser()
        folders = self._split_folders(root)
        splits = {name: ClassFolders.of(folder) for name, folder in folders.items()}
        classes = tuple(splits["train"].files)
        labelled = {name: split.labelled(classes, root) for name, split in splits.items()}
        notes = left_out(list(splits.values())) + not_tested(classes, splits.get("test"))
        return self.reading_of(labelled, classes, f"{root.name}{notes}", directory, progress)

    def _split_folders(self, root: Path) -> dict[str, Path]:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; `data.path` must name the folder of the images")
        if not isinstance(self.test, str):
            return self._undivided(root, self.test)
        train, test = root / "train", root / self.test
        lacking = [folder.name for folder in (train, test) if not folder.is_dir()]
        if lacking:
            raise DataError(
                f"{root}: has no folder {' and no folder '.join(lacking)}; images lie in train/<class>/ and "
                f"{self.test}/<class>/. Where there are only class folders, give `test: 0.2`, a share of their images "
                f"to measure on{_or_another(root)}"
            )
        held = [root / name for name in VALIDATION if name != self.test and (root / name).is_dir()]
        if len(held) > 1:
            raise DataError(f"{root}: both {held[0].name} and {held[1].name} are there to choose on; remove one")
        return {"train": train, "test": test} | ({"validation": held[0]} if held else {})

    def _undivided(self, root: Path, share: float) -> dict[str, Path]:
        """The folder of all class folders, which is `train` where there is one."""
        train = root / "train"
        if not train.is_dir():
            return {"train": root}
        others = [name for name in ("test", *VALIDATION) if (root / name).is_dir()]
        if others:
            raise DataError(
                f"{root}: has a folder {others[0]}, and `test: {share:g}` asks for a share of train to measure on; "
                f"give `test: {others[0]}`"
            )
        return {"train": train}


def _or_another(root: Path) -> str:
    """The folder that may be meant to be measured on."""
    found = [name for name in VALIDATION if (root / name).is_dir()]
    return f"; to measure on {found[0]}, give `test: {found[0]}`" if found else ""
