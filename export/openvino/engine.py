"""A compiled model as an engine."""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ExportError
from ..engine import Array, EngineDescription
from ..fitting import Taken, demand_fitting, written
from .runtime_graph import RuntimeGraph
from .session import Refusal, brief, compiled, name_of, one_sample, opened, openvino, taken, version


class Engine:
    """A model, opened by `with`, and compiled for the shapes that it is given."""

    def __init__(self, file: Path, *, threads: int = 1, profile: bool = False) -> None:
        """`profile` lets OpenVINO take the time of every operator, which costs some."""
        self._file = file
        self._threads = threads
        self._profile = profile
        self._inputs: dict[str, Taken] = {}
        self._outputs: dict[str, Taken] = {}
        self._model: Any = None
        self._compiled: Any = None
        self._compiled_for: dict[str, tuple[int, ...]] = {}
        self._runs = 0
        self._request: Any = None

    def __enter__(self) -> Self:
        self._model = opened(self._file)
        self._inputs = {name_of(port, place): taken(port) for place, port in enumerate(self._model.inputs)}
        self._outputs = {name_of(port, place): taken(port) for place, port in enumerate(self._model.outputs)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        # A request holds buffers of the compiled model, so it goes first.
        self._request = None
        self._compiled, self._model = None, None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ExportError when names, types or shapes do not fit."""
        request = self._run(inputs)
        return {name: np.array(request.get_output_tensor(place).data) for place, name in enumerate(self._outputs)}

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        """A request that has run once on copies of the inputs and keeps them."""
        demand_fitting(self._file, self._inputs, inputs)
        compiled_model = self._compiled_as({name: inputs[name].shape for name in self._inputs})
        request, make = compiled_model.create_infer_request(), openvino().Tensor
        try:
            for place, name in enumerate(self._inputs):
                request.set_input_tensor(place, make(np.ascontiguousarray(inputs[name]), shared_memory=False))
            request.infer(share_outputs=True)
            self._runs += 1
        except RuntimeError as error:
            raise ExportError(f"{self._file}: OpenVINO failed to run it: {brief(error)}") from error
        return request

    def _compiled_as(self, shapes: dict[str, tuple[int, ...]]) -> Any:
        """The model for inputs of these shapes; of the last ones, it is kept.

        With free dimensions OpenVINO works shapes out on every run and fuses less: small networks took up to 1.8 times
        as long, a ResNet-20 1.02 to 1.1 times.
        """
        if self._compiled is None or shapes != self._compiled_for:
            self._compiled = None
            try:
                self._compiled = compiled(self._model, shapes, self._threads, profile=self._profile)
            except Refusal as why:
                written_shapes = "; ".join(f"{name} ({written(shape)})" for name, shape in shapes.items())
                raise ExportError(
                    f"{self._file}: OpenVINO {version()} cannot run it for {written_shapes}: {why}"
                ) from why
            self._compiled_for, self._runs = shapes, 0
        return self._compiled

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Compile for these inputs and copy them into tensors of their own; the outputs' are made by one run."""
        self._request = None
        self._request = self._run(inputs)

    def timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs on the bound tensors."""
        assert self._request is not None  # bind comes first
        infer = self._request.infer
        seconds = np.empty(count)
        for index in range(count):
            begun = perf_counter()
            # Otherwise every run copies its outputs.
            infer(share_outputs=True)
            seconds[index] = perf_counter() - begun
        self._runs += count
        return seconds

    def summed(self, count: int) -> dict[str, float]:
        """Run `count` more times; the milliseconds that each operator took in all runs since compiling, by its name.

        OpenVINO tells the average of all these runs in whole microseconds, and leaves out what takes less than one.
        """
        assert self._request is not None  # bind comes first
        self.timed(count)
        return {
            each.node_name: each.real_time.total_seconds() * 1e3 * self._runs for each in self._request.profiling_info
        }

    def device_timed(self, count: int) -> None:
        """None: the CPU has no clock but the host's."""

    def device_memory_bytes(self) -> None:
        """None: everything is in the host's memory."""

    def describe(self) -> EngineDescription:
        """Read the graph that OpenVINO executes."""
        return EngineDescription(
            provider=f"CPU of OpenVINO {version()}",
            inputs={name: each.shape for name, each in self._inputs.items()},
            input_types={name: each.type for name, each in self._inputs.items()},
            outputs={name: each.shape for name, each in self._outputs.items()},
            operators=self.graph().counts(),
        )

    def graph(self) -> RuntimeGraph:
        """What OpenVINO made of the model, operator by operator, for the last inputs; before any, for one sample."""
        return RuntimeGraph.of(self._compiled_as(self._compiled_for or one_sample(self._model)))
