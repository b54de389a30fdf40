"""A session on an NVIDIA GPU: buffers that stay there, a stream of its own, and the runs captured as CUDA graphs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ExportError
from ..device_clock import event_timed
from ..device_memory import DeviceMemory
from ..engine import Array
from .cuda import demand_cuda
from .engine import Engine
from .session import SessionSettings, brief, onnxruntime, opened

NO_GRAPH = "-1"
"""The number of a graph that says: run without one."""

WARM_UP_RUNS = 3
"""Before it captures, ONNX Runtime runs once or twice as usual, to allocate and to choose kernels."""

CANNOT_CAPTURE = "graph capture"
"""Part of what ONNX Runtime says to a graph that cannot be captured because not all of it runs on the GPU."""


class CudaEngine(Engine):
    """A session whose inputs and outputs lie in the GPU's memory while it is timed.

    With `cuda_graph`, the runs on what was bound are captured once and then replayed as one launch, for each binding a
    graph of its own; where a part of the model runs on the CPU it goes without, and `notes` says so.
    """

    def __init__(self, file: Path, settings: SessionSettings, *, cuda_graph: bool) -> None:
        super().__init__(file, settings)
        self._wants_graph = cuda_graph
        self._captures = False
        self._graphs = 0
        self._stream: Any = None
        self._memory = DeviceMemory()
        self._timed_options: Any = None

    def __enter__(self) -> Self:
        demand_cuda(self._settings.provider)
        import torch

        with self._memory.counted():
            self._stream = torch.cuda.Stream()
            self._session = self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._stream = None

    def _opened(self) -> Any:
        on_stream = self._with(user_compute_stream=str(self._stream.cuda_stream))
        if self._wants_graph:
            try:
                session = opened(self._file, self._with_graph(on_stream), records_placement=True)
                self._captures = True
                return session
            except ExportError as error:
                if CANNOT_CAPTURE not in str(error):
                    raise
        return opened(self._file, on_stream, records_placement=True)

    def _with(self, **options: str) -> SessionSettings:
        return replace(self._settings, options={**self._settings.options, **options})

    def _with_graph(self, settings: SessionSettings) -> SessionSettings:
        option = "trt_cuda_graph_enable" if settings.provider == "tensorrt" else "enable_cuda_graph"
        return replace(settings, options={**settings.options, option: "1"})

    def _run_options(self) -> Any:
        options = onnxruntime().RunOptions()
        options.add_run_config_entry("gpu_graph_id", NO_GRAPH)
        return options

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Copy the inputs to the GPU, make room for outputs there, warm up, and capture the run if that is wanted."""
        with self._memory.counted():
            self._bind_on("cuda", inputs)
            self._graphs += 1
            self._timed_options = self._asynchronous_options()
            try:
                for _ in range(WARM_UP_RUNS):
                    self._enqueue()
                    self._binding.synchronize_outputs()
            except Exception as error:  # ONNX Runtime's exceptions have no public base class
                mend = "\nMend: set `cuda_graph: false` if it failed to capture the graph" if self._captures else ""
                raise ExportError(f"{self._file}: ONNX Runtime failed to run it: {brief(error)}{mend}") from error

    def _asynchronous_options(self) -> Any:
        options = onnxruntime().RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(self._graphs) if self._captures else NO_GRAPH)
        # Otherwise every run ends with a wait of its own, and events would time the host.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def _enqueue(self) -> None:
        self._session.run_with_iobinding(self._binding, self._timed_options)

    def timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs by the host's clock, which stops when the GPU has finished."""
        assert self._binding is not None  # bind comes first
        run, finish = self._enqueue, self._binding.synchronize_outputs
        seconds = np.empty(count)
        for index in range(count):
            begun = perf_counter()
            run()
            finish()
            seconds[index] = perf_counter() - begun
        return seconds

    def device_timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs by pairs of CUDA events."""
        assert self._binding is not None  # bind comes first
        return event_timed(self._enqueue, self._stream, count)

    def device_memory_bytes(self) -> int:
        """What the session took of the GPU's memory, for all that was bound so far; without CUDA's own context."""
        return self._memory.taken_bytes

    def bound_outputs(self) -> list[Array]:
        """What the last run on the bound buffers wrote, copied to the host."""
        return self._binding.copy_outputs_to_cpu()

    def notes(self) -> tuple[str, ...]:
        """What does not run on the GPU, and whether runs are captured."""
        left = self._left_to_the_cpu()
        notes = [f"run on the CPU: {', '.join(left)}"] if left else []
        if self._wants_graph and not self._captures:
            notes.append("no CUDA graph: a part of the model does not run on the GPU, so every kernel is launched anew")
        return tuple(notes)

    def _left_to_the_cpu(self) -> list[str]:
        """Nodes as ``module.path/Operator``, by ONNX Runtime's own record of where it placed them."""
        return [
            node.name or node.op_type
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name == "CPUExecutionProvider"
            for node in part.get_nodes()
        ]
