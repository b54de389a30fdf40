"""Whether inputs fit an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline.errors import ExportError
from .engine import Array


@dataclass(frozen=True)
class Taken:
    """What an engine takes as one of its inputs."""

    type: str
    """As NumPy names it, or the runtime where NumPy has no such type."""
    shape: tuple[int | None, ...]
    """None is a free dimension."""

    def __str__(self) -> str:
        return f"{self.type} ({written(self.shape)})"

    def fits(self, array: Array) -> bool:
        """Whether an array has this type and shape."""
        sizes = zip(self.shape, array.shape, strict=False)
        return (
            len(self.shape) == array.ndim
            and all(size in (None, given) for size, given in sizes)
            and (array.dtype.name == self.type or not _is_numpys(self.type))
        )


def demand_fitting(file: Path, wanted: Mapping[str, Taken], given: Mapping[str, Array]) -> None:
    """Raise ExportError, naming what the engine takes, where names, types or shapes are others."""
    if set(given) != set(wanted):
        raise ExportError(f"{file} takes the inputs {', '.join(wanted)}; given were {', '.join(given) or 'none'}")
    for name, array in given.items():
        if not wanted[name].fits(array):
            raise ExportError(
                f"{file}: input {name} takes {wanted[name]}; given was {array.dtype} ({written(array.shape)})"
            )


def written(shape: Sequence[int | None]) -> str:
    """For messages, such as ``any, 3, 32, 32``."""
    return ", ".join("any" if size is None else str(size) for size in shape)


def _is_numpys(name: str) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return False
    return True
