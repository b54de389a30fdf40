"""A frozen teacher's outputs, stored once for every sample and view.

What is stored depends on the sample and the view alone, and is found by the sample's number, never by its place in a
batch. A whole view is computed at once, in the samples' own order, so that no result depends on who asked first or on
where an interrupted run goes on. Each view of each output is one ``.npy`` file with a ``.json`` beside it that says, in
the clear, of which teacher, data and settings it is, and the file's sha256; the ``.json`` is written last.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from torch import Tensor

from .errors import CacheError
from .files import sync_folder, write_atomically
from .fingerprints import fingerprint, sha256_of
from .processes import ALONE, Processes

LOGITS = "logits"
CHECKED = 8
"""Samples of each stored view that the live teacher is asked for again before the view is believed."""
TOLERANCE = 0.02
"""How far a stored output may be from the live one, relative to the largest: half precision and other kernels."""

Array = NDArray[Any]
Compute = Callable[[], Iterator[dict[str, Tensor]]]
"""Yields the outputs of a whole view by name, block by block in the samples' order."""


class CacheSettings(BaseModel):
    """How the teacher's outputs are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["fp32", "fp16"] = "fp32"
    """What is stored, and so what students learn from, also where it was just computed."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Store the largest so many log-probabilities; what is left of 1 is spread evenly over the other classes."""
    maps: bool = False
    """Store what methods tap inside the teacher, too; else such methods run the teacher in every step."""
    max_bytes: Annotated[int, Field(gt=0)] = 4 * 2**30
    """Of all files in the folder; the longest unused of other teachers and data are removed first."""
    memory_bytes: Annotated[int, Field(ge=0)] = 64 * 2**20
    """Outputs are held in memory up to this size, and read from mapped files beyond it."""
    path: Path | None = None
    """The folder; a relative path starts at the recipe's. By default `.teacher-cache` beside the runs."""


@dataclass
class Counts:
    """How often stored outputs served."""

    asked: int = 0
    """Samples' outputs that a training asked for."""
    computed: int = 0
    """Samples that the teacher ran for."""


@dataclass
class TeacherCache:
    """The stored outputs of one teacher on one training split."""

    settings: CacheSettings
    folder: Path | None
    """Where files are kept; None keeps all in memory."""
    key: Mapping[str, JsonValue]
    """Everything that an output depends on but sample and view."""
    num_samples: int
    counts: Counts = field(default_factory=Counts)
    processes: Processes = ALONE
    """All ask for the same outputs at the same time; the main one writes them, and all read its files."""
    _views: dict[tuple[str, int], Array] = field(default_factory=dict[tuple[str, int], Array])

    def rows(self, names: Iterable[str], view: int, index: Tensor, compute: Compute) -> dict[str, Tensor]:
        """The outputs `names` of the samples at `index` in a view, in float32 on the CPU.

        `compute` is called where the view is not stored yet. Raises CacheError where what is stored is not of this
        teacher and data, is damaged, or differs from what the teacher gives now.
        """
        wanted = {part for name in names for part in self._parts(name)}
        if any((part, view) not in self._views for part in wanted):
            self._provide(wanted, view, compute)
        self.counts.asked += len(index)
        picks = index.numpy()
        return {name: self._joined({p: self._views[p, view][picks] for p in self._parts(name)}, name) for name in names}

    @property
    def stored_bytes(self) -> int:
        """Of the views in use, in memory or mapped."""
        return sum(array.nbytes for array in self._views.values())

    def _provide(self, wanted: set[str], view: int, compute: Compute) -> None:
        stored = self._all_opened(wanted, view)
        # Another run may write the files just now: all go by what the main process saw.
        if self.processes.told(lambda: stored is not None):
            self._check(self._seen(stored, view), view, compute)
        else:
            stored = self._computed(wanted, view, compute)
            self.processes.wait()
        for part, array in self._seen(stored or self._all_opened(wanted, view), view).items():
            self._views[part, view] = array

    def _all_opened(self, wanted: set[str], view: int) -> dict[str, Array] | None:
        found = {part: self._opened(part, view) for part in sorted(wanted)}
        stored = {part: array for part, array in found.items() if array is not None}
        return stored if len(stored) == len(wanted) else None

    def _seen(self, stored: dict[str, Array] | None, view: int) -> dict[str, Array]:
        if stored is None:
            raise CacheError(
                f"{self._file(LOGITS, view).parent}: process {self.processes.rank} does not see what the main process "
                "stored there. Mend: give `teacher.cache.path` a folder that all processes see"
            )
        return stored

    def _computed(self, wanted: set[str], view: int, compute: Compute) -> dict[str, Array] | None:
        """The whole view, stored; None in a process that takes part in the computing and does not write."""
        whole: dict[str, Array] = {}
        writes = self.folder is None or self.processes.main
        filled = 0
        for outputs in compute():
            block = {part: array for part, array in self._split(outputs).items() if part in wanted}
            if not writes:
                continue
            if not whole:
                self._make_room(sum(array[0].nbytes for array in block.values()) * self.num_samples)
                whole = {part: self._empty(part, view, array) for part, array in block.items()}
            for part, array in block.items():
                whole[part][filled : filled + len(array)] = array
            filled += len(next(iter(block.values())))
        self.counts.computed += self.num_samples
        return {part: self._finished(part, view, array) for part, array in whole.items()} if writes else None

    def _empty(self, part: str, view: int, like: Array) -> Array:
        """Room for a whole view: in memory, or in a file that has not its name yet."""
        shape = (self.num_samples, *like.shape[1:])
        if self.folder is None:
            return np.empty(shape, like.dtype)
        file = self._file(part, view)
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob("*.aside"):
            if not psutil.pid_exists(int(left.name.split(".")[-2])):
                left.unlink(missing_ok=True)
        return np.lib.format.open_memmap(_aside(file), mode="w+", dtype=like.dtype, shape=shape)

    def _finished(self, part: str, view: int, array: Array) -> Array:
        """The view as it is served from now on; a file gets its name, then its label."""
        if self.folder is None:
            return array
        assert isinstance(array, np.memmap)
        array.flush()
        file = self._file(part, view)
        _aside(file).replace(file)
        sync_folder(file.parent)
        label = {"key": dict(self.key), "view": view, "output": part, "sha256": sha256_of(file)}
        write_atomically(file.with_suffix(".json"), json.dumps(label, indent=1, sort_keys=True).encode())
        return self._served(file)

    def _served(self, file: Path) -> Array:
        """In memory while there is room, else the mapped file."""
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        held = sum(array.nbytes for array in self._views.values() if not isinstance(array, np.memmap))
        return np.array(mapped) if held + mapped.nbytes <= self.settings.memory_bytes else mapped

    def _opened(self, part: str, view: int) -> Array | None:
        """What is stored, checked against its label; None where nothing is."""
        if self.folder is None:
            return None
        file = self._file(part, view)
        label_file = file.with_suffix(".json")
        if not label_file.exists():
            return None
        label = _label(label_file)
        for name, value in {"key": dict(self.key), "view": view, "output": part}.items():
            if label.get(name) != value:
                raise CacheError(
                    f"{label_file}: is of another {_difference(label.get(name), value) or name}, so these outputs are "
                    f"not of this teacher and data. Mend: delete {file.parent}"
                )
        if not file.exists() or sha256_of(file) != label["sha256"]:
            raise CacheError(f"{file}: is damaged, its bytes are not those written. Mend: delete {file.parent}")
        os.utime(file.parent)
        return self._served(file)

    def _check(self, stored: Mapping[str, Array], view: int, compute: Compute) -> None:
        """Ask the live teacher for the first samples again. CacheError where it answers otherwise."""
        first = next(compute())
        for part, array in self._split(first).items():
            if part not in stored or part.endswith(":classes"):
                continue
            live, kept = array[:CHECKED].astype(np.float32), stored[part][:CHECKED].astype(np.float32)
            if live.shape != kept.shape or np.abs(live - kept).max() > TOLERANCE * max(float(np.abs(live).max()), 1e-6):
                raise CacheError(
                    f"{self._file(part, view)}: the teacher gives other outputs now than those stored. Mend: delete "
                    f"{self._file(part, view).parent}; if this comes again, the teacher's outputs depend on more than "
                    "its weights and the sample"
                )

    def _make_room(self, view_bytes: int) -> None:
        """Remove the longest unused outputs of others. CacheError where all views together still need too much."""
        if self.folder is None:
            return
        mine = self._file(LOGITS, 0).parent
        views = self.key["views"]
        needed = max(_bytes_in(mine), view_bytes * (views if isinstance(views, int) else 1))
        limit = self.settings.max_bytes
        if needed > limit:
            raise CacheError(
                f"the teacher's outputs would need {needed:,} bytes in {self.folder}, and `teacher.cache.max_bytes` is "
                f"{limit:,}. Mend: raise it, or take fewer `data.views`, `dtype: fp16`, `top_k`, or `maps: false`"
            )
        others = sorted((each for each in self.folder.glob("*") if each.is_dir() and each != mine), key=_last_used)
        sizes = {other: _bytes_in(other) for other in others}
        for other in others:
            if sum(sizes.values()) + needed <= limit:
                return
            del sizes[other]
            shutil.rmtree(other)

    def _file(self, part: str, view: int) -> Path:
        assert self.folder is not None
        safe = "".join(character if character.isalnum() or character in "._-" else "_" for character in part)
        return self.folder / fingerprint(dict(self.key))[:32] / f"{safe}-view{view}.npy"

    def _parts(self, name: str) -> tuple[str, ...]:
        """The arrays that an output is stored as."""
        if name == LOGITS and self.settings.top_k is not None:
            return f"{LOGITS}:values", f"{LOGITS}:classes"
        return (name,)

    def _split(self, outputs: Mapping[str, Tensor]) -> dict[str, Array]:
        parts: dict[str, Array] = {}
        precision = np.float16 if self.settings.dtype == "fp16" else np.float32
        for name, tensor in outputs.items():
            if name == LOGITS and self.settings.top_k is not None:
                values, classes = tensor.float().log_softmax(1).topk(min(self.settings.top_k, tensor.shape[1]))
                parts[f"{LOGITS}:values"] = values.cpu().numpy().astype(precision)
                parts[f"{LOGITS}:classes"] = classes.cpu().numpy().astype(np.int32)
            else:
                parts[name] = tensor.float().cpu().numpy().astype(precision)
        return parts

    def _joined(self, parts: Mapping[str, Array], name: str) -> Tensor:
        tensors = {part: torch.as_tensor(np.ascontiguousarray(array)) for part, array in parts.items()}
        if len(tensors) == 1:
            return tensors[name].float()
        num_classes = self.key["classes"]
        assert isinstance(num_classes, int)
        return from_top_k(tensors[f"{LOGITS}:values"].float(), tensors[f"{LOGITS}:classes"].long(), num_classes)


def from_top_k(values: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Logits (B, num_classes) whose softmax has the probabilities exp(values) (B, k) at `classes` (B, k).

    What is left of 1 is spread evenly over the other classes.
    """
    if values.shape[1] == num_classes:
        return torch.empty_like(values).scatter(1, classes, values)
    left = (1 - values.exp().sum(1, keepdim=True)).clamp(min=1e-7) / (num_classes - values.shape[1])
    return left.log().expand(-1, num_classes).scatter(1, classes, values)


def _label(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CacheError(f"{file}: cannot be read ({error}). Mend: delete {file.parent}") from error
    if not isinstance(found, dict) or "sha256" not in found:
        raise CacheError(f"{file}: is no label of stored outputs. Mend: delete {file.parent}")
    return cast("dict[str, Any]", found)


def _difference(found: Any, expected: Any) -> str:
    """Which parts of two keys differ, by name."""
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return ""
    theirs, mine = cast("dict[str, Any]", found), cast("dict[str, Any]", expected)
    return " and ".join(name for name in mine if theirs.get(name) != mine[name])


def _aside(file: Path) -> Path:
    """Its name while it is written: with the process's number, since another run may write the same one."""
    return file.with_name(f"{file.name}.{os.getpid()}.aside")


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime
