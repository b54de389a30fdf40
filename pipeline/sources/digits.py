"""Real handwritten digits that come inside the scikit-learn package."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional

from ..data import DataSource, stratified
from ..data_checks import RawSamples, Reading
from ..errors import DataError, MissingDependency
from ..progress import Progress

TEST_SHARE = 0.2
BRIGHTEST = 16
"""The scans count the dark pixels of 4x4 blocks."""


class Digits(DataSource, frozen=True, extra="forbid"):
    """1,797 grey scans of 8x8 pixels in 10 classes, resized; a fixed fifth of each class is the test split."""

    source: Literal["digits"] = "digits"
    size: Annotated[int, Field(ge=8, le=256)] = 32
    """Height and width in pixels after bilinear resizing."""
    license: Annotated[str, Field(min_length=1, max_length=1000)] | None = (
        "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository "
        "(archive.ics.uci.edu/dataset/80, which names the licence); the copy that comes with scikit-learn"
    )

    def read(self, directory: Path, progress: Progress) -> Reading:
        """Both splits, as uint8 images (N, 1, size, size)."""
        scans, labels = _scans_and_labels()
        images = torch.as_tensor(scans.astype(np.float32)).view(-1, 1, 8, 8)
        resized = functional.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
        pixels = (resized * (255 / BRIGHTEST)).round().to(torch.uint8).numpy()
        test, train = stratified(torch.as_tensor(labels), round(TEST_SHARE * len(labels)))
        splits = [
            RawSamples({"image": pixels[index]}, labels[index], f"digits ({name})")
            for name, index in (("train", train), ("test", test))
        ]
        return Reading(splits[0], splits[1], "handwritten digits (scikit-learn)")


def _scans_and_labels() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What ``sklearn.datasets.load_digits`` reads, without importing scikit-learn, which takes 1.6 s."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise MissingDependency("`source: digits` reads the scans inside scikit-learn: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file in the installed scikit-learn; install it again: pip install scikit-learn"
        )
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1].astype(np.int64)
