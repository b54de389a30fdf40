"""What every runtime's engine can do."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Array = NDArray[Any]


class EngineDescription(BaseModel):
    """What an engine takes and gives, and the operators that the runtime made of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    inputs: dict[str, tuple[int | None, ...]]
    """Shapes by name; None is a free dimension."""
    input_types: dict[str, str]
    """As NumPy names them, such as ``float32``."""
    outputs: dict[str, tuple[int | None, ...]]
    operators: dict[str, int]
    """How many of each the optimised graph holds."""


class Engine(Protocol):
    """An opened engine file. Opening and closing belong to a `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ExportError when names, types or shapes do not fit the engine."""
        ...

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Put inputs and outputs where `timed` finds them, so that it times the engine and no copies."""
        ...

    def timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs, one after the other, on what was bound, by the host's clock.

        Each ends when its outputs are there: on a GPU, the host waits for them.
        """
        ...

    def device_timed(self, count: int) -> NDArray[np.float64] | None:
        """Likewise by the device's own clock, from before its first kernel to behind its last; None on the CPU."""
        ...

    def device_memory_bytes(self) -> int | None:
        """What the engine holds of the GPU's memory, its buffers included; None on the CPU."""
        ...

    def describe(self) -> EngineDescription:
        """Read the graph as the runtime optimised it."""
        ...
