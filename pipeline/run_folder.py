"""A run's folder: parts that are whole or absent, a manifest that says what they were made from, and a lock.

Everything is written aside, flushed to the disk and renamed, so that a kill at any moment leaves what was there before
or what was to be there. The layout::

    manifest.json       which parts there are, what they were made from, and the hash of each of their files
    01-train/artifact/  a part
    checkpoints/        scratch folders of steps that have not finished
    .aside/             what is being written; `<n>.json` there commits `<n>/`, and the next opening moves it into place
    .lock               held by the process that runs
"""

import importlib.metadata
import itertools
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from pydantic import BaseModel, Field, ValidationError

from .errors import RunFolderError
from .files import sync_folder, write_atomically
from .fingerprints import sha256_by_file, sha256_of
from .folder_lock import FolderLock
from .storage_errors import storage_errors, storage_problem

VERSION = 1
"""Of the manifest; raised when an older potstill could misread it."""


class Part(BaseModel, frozen=True, extra="forbid"):
    """What the manifest says of one part."""

    fingerprint: str
    files: dict[str, str]
    """sha256 by path relative to the part's folder."""
    finished: datetime

    def problem(self, folder: Path) -> str | None:
        """What of the files in `folder` is no longer as it was written; None where all are."""
        for name, expected in self.files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is gone"
            if sha256_of(file) != expected:
                return f"{name} was changed or damaged since it was written"
        return None


class Manifest(BaseModel, extra="forbid"):
    """What a run folder holds."""

    version: int = VERSION
    potstill: str
    """The version that wrote it last."""
    parts: dict[str, Part] = Field(default_factory=dict[str, Part])


class _Commitment(BaseModel, frozen=True, extra="forbid"):
    """A part that is completely written aside and only needs to be moved into place."""

    name: str
    part: Part


@dataclass(frozen=True)
class Reuse:
    """A part that is as it was recorded, made from the same things."""

    path: Path


@dataclass(frozen=True)
class Stale:
    """A part that has to be made."""

    reason: str
    """Such as ``model.safetensors was changed or damaged since it was written``; empty for a part never made."""


def recorded_parts(path: Path) -> dict[str, Part]:
    """What the manifest of a run says, read beside whoever works in the folder; RunFolderError where it is damaged."""
    with storage_errors(path):
        return _read_manifest(path, fresh=False).parts


class RunFolder:
    """The only writer of a run::

    with RunFolder.open(Path("runs/digits")) as folder:
        state = folder.state("01-train/artifact", fingerprint)
        if isinstance(state, Stale):
            with folder.writing("01-train/artifact", fingerprint) as aside:
                artifact.save(aside, inputs)
    """

    def __init__(self, path: Path, lock: FolderLock, manifest: Manifest) -> None:
        self.path = path
        self._lock = lock
        self._manifest = manifest
        self._numbers = itertools.count()

    @classmethod
    def open(cls, path: Path, *, fresh: bool = False) -> Self:
        """Lock the folder, made if need be, and finish or clear away what a killed run left; `fresh` forgets all parts.

        Raises RunFolderError when another process holds it, when it is not writable, and when its manifest is damaged
        (unless `fresh`) or of a newer version.
        """
        path = path.absolute()
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(path)
            try:
                folder = cls(path, lock, _read_manifest(path, fresh=fresh))
                folder._begin(fresh=fresh)
            except BaseException:
                lock.release()
                raise
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, Exception):
            # Whatever wrote to the run, such as a training its checkpoints: a full disk is told in plain words.
            sentence = storage_problem(error, self.path)
            if sentence is not None:
                raise RunFolderError(sentence) from error

    def close(self) -> None:
        """Let other processes in."""
        self._lock.release()

    def state(self, part: str, fingerprint: str) -> Reuse | Stale:
        """Whether a part, such as ``01-train/artifact``, was made from what `fingerprint` says and is unharmed."""
        record = self._manifest.parts.get(part)
        if record is None:
            return Stale("")
        if record.fingerprint != fingerprint:
            return Stale("its settings, or what it is made from, changed")
        problem = record.problem(self.path / part)
        return Reuse(self.path / part) if problem is None else Stale(problem)

    def recorded(self, part: str) -> str | None:
        """What a part was made from, as its fingerprint; None for a part that is not there."""
        record = self._manifest.parts.get(part)
        return None if record is None else record.fingerprint

    def reusable(self, part: str, fingerprint: str) -> Path | None:
        """The folder of a part that need not be made again; `state` says why it must."""
        state = self.state(part, fingerprint)
        return state.path if isinstance(state, Reuse) else None

    @contextmanager
    def writing(self, part: str, fingerprint: str) -> Generator[Path]:
        """An empty folder to write a part into. It takes the old part's place when the block ends, and not if it fails.

        Raises RunFolderError where the disk is full or protected, by the block's own writing too.
        """
        aside = self._aside / str(next(self._numbers))
        commitment = _commitment_file(aside)
        with storage_errors(self.path):
            try:
                aside.mkdir()
                yield aside
                record = _sealed(aside, fingerprint)
                write_atomically(commitment, _Commitment(name=part, part=record).model_dump_json().encode())
            except BaseException:
                commitment.unlink(missing_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                raise
            self._complete(commitment)

    def checkpoints(self, step: str, fingerprint: str) -> Path:
        """A scratch folder that outlives kills; a step whose fingerprint changed begins with an empty one."""
        folder = self._checkpoints / f"{step}@{fingerprint[:16]}"
        with storage_errors(self.path):
            for other in self._checkpoint_folders(step):
                if other != folder:
                    shutil.rmtree(other)
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard_checkpoints(self, step: str) -> None:
        """Remove what a finished step no longer needs."""
        with storage_errors(self.path):
            for folder in self._checkpoint_folders(step):
                shutil.rmtree(folder)

    def write_file(self, name: str, text: str) -> None:
        """Replace a file of the run that is no part, such as ``recipe.yaml`` or ``report.json``."""
        file = self.path / name
        with storage_errors(self.path):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text.encode())

    @property
    def _aside(self) -> Path:
        return self.path / ".aside"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _checkpoint_folders(self, step: str) -> list[Path]:
        return sorted(self._checkpoints.glob(f"{step}@*"))

    def _begin(self, *, fresh: bool) -> None:
        if fresh:
            self._forget_all()
        for commitment in sorted(self._aside.glob("*.json")):
            self._complete(commitment)
        if self._aside.exists():
            shutil.rmtree(self._aside)
        for left_over in self.path.glob("*.aside"):
            left_over.unlink()
        self._aside.mkdir()
        if not _manifest_file(self.path).exists():
            self._save_manifest()

    def _forget_all(self) -> None:
        """Parts, commitments and checkpoints; first in the manifest, so that no kill leaves half a part recorded."""
        forgotten = list(self._manifest.parts)
        self._manifest.parts.clear()
        self._save_manifest()
        for folder in (self._aside, self._checkpoints, *(self.path / part for part in forgotten)):
            if folder.exists():
                shutil.rmtree(folder)

    def _complete(self, commitment_file: Path) -> None:
        """Move a committed part into place and record it; wherever this was cut off, doing it again finishes it."""
        commitment = _Commitment.model_validate_json(commitment_file.read_bytes())
        aside, old = commitment_file.with_suffix(""), commitment_file.with_suffix(".old")
        place = self.path / commitment.name
        if aside.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                place.rename(old)
            aside.rename(place)
            for folder in (self._aside, place.parent, self.path):
                sync_folder(folder)
        self._manifest.parts[commitment.name] = commitment.part
        self._save_manifest()
        commitment_file.unlink()
        if old.exists():
            shutil.rmtree(old)

    def _save_manifest(self) -> None:
        self._manifest.potstill = version()
        write_atomically(_manifest_file(self.path), self._manifest.model_dump_json(indent=2).encode())


def _commitment_file(aside: Path) -> Path:
    return aside.with_suffix(".json")


def _manifest_file(path: Path) -> Path:
    return path / "manifest.json"


def _sealed(folder: Path, fingerprint: str) -> Part:
    """What is in the folder, after all of it has reached the disk."""
    for path in sorted(folder.rglob("*")):
        (sync_folder if path.is_dir() else _sync_file)(path)
    sync_folder(folder)
    return Part(fingerprint=fingerprint, files=sha256_by_file(folder), finished=datetime.now(UTC))


def _sync_file(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _read_manifest(path: Path, *, fresh: bool) -> Manifest:
    file = _manifest_file(path)
    if not file.exists():
        return Manifest(potstill=version())
    try:
        content: object = json.loads(file.read_bytes())
        _refuse_newer(content, path)
        return Manifest.model_validate(content)
    except ValueError as error:  # no UTF-8, no JSON, or (a ValidationError) not a manifest
        if fresh:
            return Manifest(potstill=version())
        raise RunFolderError(
            f"{file} is damaged ({_first_line(error)}), so it is unknown what the run holds; "
            "run again with --fresh to make everything anew, or give the run another name"
        ) from error


def _refuse_newer(content: object, path: Path) -> None:
    if not isinstance(content, dict):
        return
    entries = cast("dict[str, object]", content)
    version = entries.get("version")
    if isinstance(version, int) and version > VERSION:
        raise RunFolderError(
            f"{path} was written by potstill {entries.get('potstill')} (manifest version {version}, this one reads "
            f"{VERSION}); update potstill, or give this run another name"
        )


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]


def version() -> str:
    """Of potstill, as it is installed."""
    try:
        return importlib.metadata.version("potstill")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (a checkout that is not installed)"
