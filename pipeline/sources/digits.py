"""Real handwritten digits that come inside the scikit-learn package."""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional

from ..data import DataSource, stratified
from ..data_checks import RawSamples, Reading

TEST_SHARE = 0.2
BRIGHTEST = 16
"""The scans count the dark pixels of 4x4 blocks."""


class Digits(DataSource, frozen=True, extra="forbid"):
    """1,797 grey scans of 8x8 pixels in 10 classes, resized; a fixed fifth of each class is the test split."""

    source: Literal["digits"] = "digits"
    size: Annotated[int, Field(ge=8, le=256)] = 32
    """Height and width in pixels after bilinear resizing."""

    def read(self, directory: Path) -> Reading:
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


def _scans_and_labels() -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs] - scikit-learn has none

    return cast("tuple[NDArray[Any], NDArray[Any]]", load_digits(return_X_y=True))
