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
from ..fitting import demand_fitting
from .runtime_graph import RuntimeGraph
from .session import brief, name_of, opened, openvino, taken, version


class Engine:
    """A model compiled for the CPU, opened by `with`."""

    def __init__(self, file: Path, *, threads: int = 1, profile: bool = False) -> None:
        """`profile` lets OpenVINO take the time of every operator, which costs some."""
        self._file = file
        self._threads = threads
        self._profile = profile
        self._model: Any = None
        self._request: Any = None

    def __enter__(self) -> Self:
        self._model = opened(self._file, self._threads, profile=self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        # A request holds buffers of the model, so it goes first.
        self._request = None
        self._model = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ExportError when names, types or shapes do not fit."""
        request = self._run(inputs)
        return {
            name_of(port, place): np.array(request.get_output_tensor(place).data)
            for place, port in enumerate(self._model.outputs)
        }

    def _run(self, inputs: Mapping[str, Array]) -> Any:
        """A request that has run once on copies of the inputs and keeps them."""
        ports = {name_of(port, place): port for place, port in enumerate(self._model.inputs)}
        demand_fitting(self._file, {name: taken(port) for name, port in ports.items()}, inputs)
        make, request = openvino().Tensor, self._model.create_infer_request()
        try:
            for name, array in inputs.items():
                request.set_tensor(ports[name], make(np.ascontiguousarray(array), shared_memory=False))
            request.infer(share_outputs=True)
        except RuntimeError as error:
            raise ExportError(f"{self._file}: OpenVINO failed to run it: {brief(error)}") from error
        return request

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Copy the inputs into tensors of their own; the outputs' are made by one run."""
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
        return seconds

    def profiled(self) -> dict[str, float]:
        """Milliseconds of every operator that one run on the bound tensors executes, by its name."""
        assert self._request is not None  # bind comes first
        self._request.infer(share_outputs=True)
        executed = openvino().ProfilingInfo.Status.EXECUTED
        return {
            each.node_name: each.real_time.total_seconds() * 1e3
            for each in self._request.profiling_info
            if each.status == executed
        }

    def device_timed(self, count: int) -> None:
        """None: the CPU has no clock but the host's."""

    def device_memory_bytes(self) -> None:
        """None: everything is in the host's memory."""

    def describe(self) -> EngineDescription:
        """Read the graph that OpenVINO executes."""
        inputs = {name_of(port, place): taken(port) for place, port in enumerate(self._model.inputs)}
        outputs = {name_of(port, place): taken(port) for place, port in enumerate(self._model.outputs)}
        return EngineDescription(
            provider=f"CPU of OpenVINO {version()}",
            inputs={name: each.shape for name, each in inputs.items()},
            input_types={name: each.type for name, each in inputs.items()},
            outputs={name: each.shape for name, each in outputs.items()},
            operators=self.graph().counts(),
        )

    def graph(self) -> RuntimeGraph:
        """What OpenVINO made of the model, operator by operator."""
        return RuntimeGraph.of(self._model)
