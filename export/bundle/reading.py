"""What samples are made of, where a bundle's example makes them itself: image files, recordings or texts."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ...pipeline.data import Dataset
from ...pipeline.fingerprints import ROOT
from .manifest import Reads
from .rendering import rendered

READING = "reading.py"
"""The example's module with a function `read`, from what is given on the command line to samples."""


@dataclass(frozen=True)
class Kind:
    """One kind of original."""

    given: str
    """What the example takes on its command line."""
    packages: tuple[str, ...] = ()
    """That reading needs beside NumPy."""
    code: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Modules of ours that reading needs, by their names in the bundle; they need nothing else of ours."""


KINDS: Mapping[Reads | None, Kind] = {
    None: Kind(given="SAMPLES.npz | SAMPLES.npy"),
    "images": Kind(
        given="IMAGE… | SAMPLES.npz",
        packages=("pillow",),
        code={"images.py": ROOT / "pipeline" / "images" / "decoding.py"},
    ),
    "sound": Kind(given="CLIP.wav… | SAMPLES.npz"),
    "texts": Kind(given='"A TEXT"…', packages=("tokenizers",)),
}


def write_reading(folder: Path, reads: Reads | None) -> dict[str, str]:
    """The example's modules that read originals; the versions of the packages that they need, by name."""
    kind = KINDS[reads]
    if reads is not None:
        (folder / READING).write_text(rendered(f"reading_{reads}.py.jinja"), encoding="utf-8")
    for name, file in kind.code.items():
        shutil.copyfile(file, folder / name)
    return {name: metadata.version(name) for name in kind.packages}


def originals_of(data: Dataset, scratch: Path) -> list[str] | None:
    """The test split's originals in its order, as the example takes them; None where they are not at hand.

    What has no file of its own gets one in `scratch`.
    """
    if data.text is not None:
        return list(data.text.test)
    if data.test.pictures is not None:
        pictures = data.test.pictures.pictures
        return [str(pictures.file(number, scratch).resolve()) for number in range(len(pictures))]
    return None
