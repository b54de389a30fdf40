"""Where decoded pixels lie: in memory up to a limit, or in a folder's files, which later runs map again."""

import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from ..errors import DataError
from ..files import sync_folder, write_atomically
from ..fingerprints import code_fingerprint, fingerprint, sha256_of
from ..folder_lock import FolderLock
from ..storage_errors import folder_problem, storage_errors
from .pictures import Pictures, Preparation
from .workers import Problem, Workers

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Storage:
    """How pixels are kept, and by whom they are decoded."""

    folder: Path | None
    """None: in memory."""
    memory_bytes: int
    """Not more than this is held in memory."""
    workers: Workers

    def demand_room(self, needed_bytes: int, what: str) -> None:
        """DataError where the pixels may not be held in memory, and no folder is named for them."""
        if self.folder is None and needed_bytes > self.memory_bytes:
            raise DataError(
                f"{what} take {_size(needed_bytes)} decoded, and `memory_bytes` allows "
                f"{_size(self.memory_bytes)}; raise it, ask for a smaller `size`, or name a folder that they are "
                "mapped from with `cache: FOLDER`"
            )

    def pixels(
        self, pictures: Pictures, digests: tuple[str, ...], preparation: Preparation
    ) -> tuple[Pixels, list[Problem]]:
        """Decoded images (N, 3, size, size), those of earlier runs where they are stored; and what is wrong."""
        shape = (len(pictures), 3, preparation.size, preparation.size)
        if self.folder is None:
            pixels = np.empty(shape, np.uint8)
            return pixels, self.workers.decode(pictures, preparation, pixels)
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.folder)
            try:
                return self._stored(self.folder / f"{_key(digests, preparation)}.npy", pictures, preparation, shape)
            finally:
                lock.release()

    def _stored(
        self, file: Path, pictures: Pictures, preparation: Preparation, shape: tuple[int, ...]
    ) -> tuple[Pixels, list[Problem]]:
        record = file.with_suffix(".sha256")
        if not (file.is_file() and record.is_file() and record.read_text() == sha256_of(file)):
            problems = self._write(file, pictures, preparation, shape)
            if problems:
                return np.empty((0, *shape[1:]), np.uint8), problems
            write_atomically(record, sha256_of(file).encode())
        else:
            self.workers.skip(len(pictures))
        # Changes would stay in this process: torch takes only arrays that may be written to.
        return np.load(file, mmap_mode="c", allow_pickle=False), []

    def _write(self, file: Path, pictures: Pictures, preparation: Preparation, shape: tuple[int, ...]) -> list[Problem]:
        problem = folder_problem(file.parent, int(np.prod(shape)))
        if problem is not None:
            raise DataError(f"`cache`: {problem}")
        aside = file.with_suffix(".aside")
        try:
            pixels = open_memmap(aside, mode="w+", dtype=np.uint8, shape=shape)
            # Files with holes fail when a page is written, by a signal and not by an error.
            with aside.open("r+b") as opened:
                _allocate(opened.fileno(), aside.stat().st_size)
            problems = self.workers.decode(pictures, preparation, pixels)
            pixels.flush()
            if not problems:
                aside.replace(file)
                sync_folder(file.parent)
            return problems
        finally:
            aside.unlink(missing_ok=True)


def digests_of(pictures: Pictures) -> tuple[str, ...]:
    """sha256 of each encoded image; of those that cannot be read, an empty text."""
    return tuple(_digest(pictures, number) for number in range(len(pictures)))


def _digest(pictures: Pictures, number: int) -> str:
    try:
        return hashlib.sha256(pictures.encoded(number)).hexdigest()
    except OSError:
        return ""


def _key(digests: tuple[str, ...], preparation: Preparation) -> str:
    """Of everything that the pixels depend on."""
    code, pillow = code_fingerprint("pipeline.images.decoding"), importlib.metadata.version("pillow")
    return fingerprint(list(digests), preparation.resize, preparation.size, code, pillow)[:32]


def _allocate(descriptor: int, count: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, count)


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
