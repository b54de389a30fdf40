"""A session as an engine, on the CPU; what GPUs add is in `cuda_engine.py`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ExportError
from ..engine import Array, EngineDescription
from ..fitting import Taken, demand_fitting
from .session import (
    CPU,
    SessionSettings,
    brief,
    loaded,
    onnxruntime,
    opened,
    shape_of,
    type_name,
)

if TYPE_CHECKING:
    from onnx import ModelProto

FILE = "model.onnx"


def optimized(file: Path, settings: SessionSettings = CPU) -> "ModelProto":
    """The graph that ONNX Runtime makes of a model file for a provider on this machine."""
    with TemporaryDirectory() as folder:
        destination = Path(folder) / FILE
        opened(file, settings, optimized_file=destination)
        return loaded(destination)


class Engine:
    """A session, opened by `with`."""

    def __init__(self, file: Path, settings: SessionSettings = CPU) -> None:
        self._file = file
        self._settings = settings
        self._session: Any = None
        self._binding: Any = None
        self._bound: list[Any] = []

    def __enter__(self) -> Self:
        self._session = opened(self._file, self._settings)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        # The binding holds buffers of the session, so it goes first.
        self._binding, self._bound = None, []
        self._session = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ExportError when names, types or shapes do not fit."""
        names = [output.name for output in self._session.get_outputs()]
        outputs = cast(Sequence[Array], self._run(inputs, names))
        return dict(zip(names, outputs, strict=True))

    def _run(self, inputs: Mapping[str, Array], names: Sequence[str]) -> Any:
        self._check(inputs)
        try:
            return self._session.run(names, dict(inputs), self._run_options())
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ExportError(f"{self._file}: ONNX Runtime failed to run it: {brief(error)}") from error

    def _run_options(self) -> Any:
        """Of runs on inputs of any shape."""
        return None

    def _check(self, inputs: Mapping[str, Array]) -> None:
        demand_fitting(
            self._file,
            {entry.name: Taken(type_name(entry), shape_of(entry)) for entry in self._session.get_inputs()},
            inputs,
        )

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Bind copies of the inputs, and outputs of the shapes that one run gives."""
        self._bind_on("cpu", inputs)

    def _bind_on(self, device: str, inputs: Mapping[str, Array]) -> None:
        make = onnxruntime().OrtValue.ortvalue_from_numpy
        outputs = self.run(inputs)
        binding = self._session.io_binding()
        # The binding holds addresses only, so the buffers must live as long.
        held = [make(np.ascontiguousarray(array), device, 0) for array in inputs.values()]
        for name, buffer in zip(inputs, held, strict=True):
            binding.bind_ortvalue_input(name, buffer)
        for name, output in outputs.items():
            buffer = make(np.empty_like(output), device, 0)
            binding.bind_ortvalue_output(name, buffer)
            held.append(buffer)
        self._binding, self._bound = binding, held

    def timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs on the bound buffers."""
        assert self._binding is not None  # bind comes first
        run, binding = self._session.run_with_iobinding, self._binding
        seconds = np.empty(count)
        for index in range(count):
            begun = perf_counter()
            run(binding)
            seconds[index] = perf_counter() - begun
        return seconds

    def device_timed(self, count: int) -> NDArray[np.float64] | None:
        """None: the CPU has no clock but the host's."""

    def device_memory_bytes(self) -> int | None:
        """None: everything is in the host's memory."""

    def describe(self) -> EngineDescription:
        """Read the optimised graph; costs a second load of the model."""
        operators = Counter(node.op_type for node in optimized(self._file, self._settings).graph.node)
        return EngineDescription(
            provider=self._session.get_providers()[0],
            inputs={entry.name: shape_of(entry) for entry in self._session.get_inputs()},
            input_types={entry.name: type_name(entry) for entry in self._session.get_inputs()},
            outputs={entry.name: shape_of(entry) for entry in self._session.get_outputs()},
            operators=dict(sorted(operators.items())),
        )
