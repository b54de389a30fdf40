"""A folder with `train.npz` and `test.npz`, each holding images `x` and labels `y`."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..data import DataSource
from ..data_checks import RawSamples, Reading
from ..errors import DataError
from ..progress import Progress

CHANNELS = (1, 3, 4)
"""Numbers of channels that tell the channel axis from height and width."""


class Npz(DataSource, frozen=True, extra="forbid"):
    """`train.npz` and `test.npz` as `numpy.savez(file, x=images, y=labels)` writes them.

    For a task other than a classification, `y` holds its targets (N, …).
    """

    source: Literal["npz"] = "npz"
    path: Path
    """The folder; a relative path starts at the recipe's."""
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    """Where images `x` have their channels; `auto` takes the axis of length 1, 3 or 4, and (N, H, W) as one channel."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """The classes' names in order of their numbers; without, they are counted in the training labels."""

    def read(self, directory: Path, progress: Progress) -> Reading:
        """Both splits; images as (N, C, H, W)."""
        folder = directory / self.path.expanduser()
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; `data.path` must name the folder of train.npz and test.npz")
        train, test = (self._samples(folder / f"{name}.npz") for name in ("train", "test"))
        return Reading(train, test, folder.name, classes=self.classes)

    def _samples(self, file: Path) -> RawSamples:
        x, y = arrays_of(file, ("x", "y"), "x=images, y=labels").values()
        if x.ndim in (3, 4):
            return RawSamples({"image": self._channels_first(x, file)}, y, str(file))
        return RawSamples({"input": x}, y, str(file))

    def _channels_first(self, x: NDArray[Any], file: Path) -> NDArray[Any]:
        if x.ndim == 3:
            return x[:, None]
        first, last = x.shape[1] in CHANNELS, x.shape[3] in CHANNELS
        if self.layout == "auto" and first == last:
            raise DataError(
                f"{file}: x has the shape {x.shape}, which does not tell where the channels are; "
                "set `layout: nchw` or `layout: nhwc`"
            )
        if self.layout == "nhwc" or (self.layout == "auto" and last):
            return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        return x


def arrays_of(file: Path, keys: Sequence[str], saved: str) -> dict[str, NDArray[Any]]:
    """The arrays under these keys of a `.npz` file, in their order; DataError where it lacks one or is damaged.

    `saved` are the arguments that `numpy.savez` writes such a file with, for messages.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; write it with numpy.savez({str(file)!r}, {saved})")
    found: dict[str, NDArray[Any]] = {}
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            for key in keys:
                if key not in archive:
                    raise DataError(
                        f"{file} has no array {key!r}, only {', '.join(archive) or 'none'}; "
                        f"write it with numpy.savez(file, {saved})"
                    )
                found[key] = _array(archive, key, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError) as error:
        reason = "it is damaged" if zipfile.is_zipfile(file) else "it is no zip archive"
        raise DataError(f"{file} is not a readable .npz file ({reason}); write it or copy it again") from error
    return found


def _array(archive: Any, key: str, file: Path) -> NDArray[Any]:
    try:
        return archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise DataError(
            f"{file}: {key} is an array of Python objects, as samples of unequal size make one, and is not read; "
            "bring all to one size first, by resizing or padding, and store one numeric array"
        ) from error
