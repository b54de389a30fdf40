"""Running an engine: buffers and streams are torch's, and what is timed is one CUDA graph."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ....pipeline.errors import ExportError
from ...engine import Array, EngineDescription
from ..inputs import batches, input_problem, is_batched, largest_batch
from ..inspection import kinds
from ..manifest import TensorFacts
from .loading import Loaded, loaded, sizes, tensor_facts, torch_type
from .profiling import LayerTimes, engine_information

if TYPE_CHECKING:
    import tensorrt as trt

PROFILED_RUNS, PROFILE_WARM_UP = 50, 5
WARM_UP = 3
"""Runs before a capture: the first ones load kernels and set up what a graph cannot hold."""


@dataclass(frozen=True)
class _Bound:
    """Buffers that stay where they are, and the captured run on them."""

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    graph: torch.cuda.CUDAGraph | None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.inputs.values(), *self.outputs.values()))


@dataclass(frozen=True)
class _Opened:
    loaded: Loaded
    context: "trt.IExecutionContext"
    stream: torch.cuda.Stream
    inputs: dict[str, TensorFacts]
    outputs: dict[str, TensorFacts]


class TensorRTEngine:
    """An engine file, opened by `with`."""

    def __init__(self, file: Path, *, cuda_graph: bool = True) -> None:
        self._file = file
        self._cuda_graph = cuda_graph
        self._engine: _Opened | None = None
        self._bound: _Bound | None = None
        self._profiler: trt.IProfiler | None = None

    def __enter__(self) -> Self:
        engine = loaded(self._file)
        with _telling(f"TensorRT cannot run {self._file}"):
            context = engine.engine.create_execution_context()
            if context is None:
                raise engine.messages.failure(f"TensorRT cannot prepare {self._file} to run")
            # Not the default one, on which TensorRT would wait for the whole device at every run.
            self._engine = _Opened(engine, context, torch.cuda.Stream(), *tensor_facts(engine.engine))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        # The graph before the buffers and the context that it uses.
        self._bound, self._engine = None, None

    @property
    def _opened(self) -> _Opened:
        assert self._engine is not None  # inside the with block
        return self._engine

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, more samples than the profile takes in several runs.

        Raises ExportError when names, types or shapes do not fit.
        """
        self._check(inputs)
        parts = list(batches(self._opened.inputs, inputs))
        if len(parts) > 1 and not all(is_batched(facts) for facts in self._opened.outputs.values()):
            raise ExportError(
                f"{self._file} was built for {largest_batch(self._opened.inputs)} samples at once, and has outputs "
                "that are not one a sample: give it no more"
            )
        found = [self._run(part) for part in parts]
        return (
            {name: np.concatenate([each[name] for each in found]) for name in found[0]} if len(found) > 1 else found[0]
        )

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with _telling(f"TensorRT failed to run {self._file}"):
            bound = self._buffers(inputs)
            self._enqueue()
            self._opened.stream.synchronize()
            return {name: tensor.cpu().numpy() for name, tensor in bound.outputs.items()}

    def _check(self, inputs: Mapping[str, Array]) -> None:
        problem = input_problem(self._opened.inputs, inputs)
        if problem is not None:
            raise ExportError(f"{self._file} {problem}")

    def _buffers(self, inputs: Mapping[str, Array]) -> _Bound:
        """Copies of the inputs on the GPU and room for the outputs, at addresses that the context knows."""
        opened = self._opened
        with torch.cuda.stream(opened.stream):
            held = {name: torch.from_numpy(np.array(array, order="C")).cuda() for name, array in inputs.items()}
            for name, tensor in held.items():
                if not opened.context.set_input_shape(name, tuple(tensor.shape)):
                    raise opened.loaded.messages.failure(f"TensorRT refuses the shape of {name} for {self._file}")
            made = {name: self._output(name) for name in opened.outputs}
        for name, tensor in (held | made).items():
            if not opened.context.set_tensor_address(name, tensor.data_ptr()):
                raise opened.loaded.messages.failure(f"TensorRT refuses the buffer of {name} for {self._file}")
        return _Bound(held, made, None)

    def _output(self, name: str) -> torch.Tensor:
        """Room for an output, whose shape follows from those of the inputs."""
        shape = sizes(self._opened.context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise ExportError(f"{self._file}: the shape of the output {name} hangs on values, which is not supported")
        return torch.empty(shape, dtype=torch_type(self._opened.loaded.engine, name), device="cuda")

    def _enqueue(self) -> None:
        opened = self._opened
        if not opened.context.execute_async_v3(opened.stream.cuda_stream):
            raise opened.loaded.messages.failure(f"TensorRT failed to run {self._file}")

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Put copies of the inputs on the GPU, and capture one run on them in a CUDA graph.

        Raises ExportError where the inputs do not fit into one run, and where the engine cannot be captured.
        """
        self._check(inputs)
        if len(list(batches(self._opened.inputs, inputs))) > 1:
            raise ExportError(
                f"{self._file} was built for {largest_batch(self._opened.inputs)} samples at once, and more were "
                "given: add that size to the target's `batch`"
            )
        self._bound = None  # its memory is free before more is taken
        with _telling(f"TensorRT failed to run {self._file}"):
            bound = self._buffers(inputs)
            for _ in range(WARM_UP):
                self._enqueue()
            self._opened.stream.synchronize()
        self._bound = _Bound(bound.inputs, bound.outputs, self._captured() if self._cuda_graph else None)

    def _captured(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with (
            _telling(f"{self._file} cannot be captured in a CUDA graph (set `cuda_graph: false` to time it without)"),
            torch.cuda.graph(graph, stream=self._opened.stream, capture_error_mode="thread_local"),
        ):
            self._enqueue()
        return graph

    @contextmanager
    def _ready(self) -> Generator[_Bound]:
        """The bound buffers, with the stream that they are used on as torch's own."""
        assert self._bound is not None  # bind comes first
        if self._bound.graph is None:
            # `run` may have shown the context others since.
            for name, tensor in self._bound.inputs.items():
                self._opened.context.set_input_shape(name, tuple(tensor.shape))
            for name, tensor in (self._bound.inputs | self._bound.outputs).items():
                self._opened.context.set_tensor_address(name, tensor.data_ptr())
        with torch.cuda.stream(self._opened.stream):
            yield self._bound

    def _once(self, bound: _Bound) -> None:
        if bound.graph is None:
            self._enqueue()
        else:
            bound.graph.replay()

    def timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs on the bound buffers, until the host sees that it ended."""
        seconds, stream = np.empty(count), self._opened.stream
        with self._ready() as bound:
            for index in range(count):
                begun = perf_counter()
                self._once(bound)
                stream.synchronize()
                seconds[index] = perf_counter() - begun
        return seconds

    def device_timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs between two CUDA events; each waits until the one before has ended."""
        seconds, stream = np.empty(count), self._opened.stream
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with self._ready() as bound:
            for index in range(count):
                begun.record(stream)
                self._once(bound)
                ended.record(stream)
                ended.synchronize()
                seconds[index] = begun.elapsed_time(ended) / 1e3
        return seconds

    def device_memory_bytes(self) -> int:
        """Weights, scratch memory and bound buffers, as TensorRT and torch count them; CUDA's own not included."""
        import tensorrt as trt

        engine = self._opened.loaded.engine
        weights = engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        return max(weights, 0) + engine.device_memory_size_v2 + (self._bound.num_bytes if self._bound else 0)

    def layer_times(self, inputs: Mapping[str, Array]) -> dict[str, list[float]]:
        """Milliseconds of each layer in each of some runs, without a CUDA graph, by the layers' names."""
        self._check(inputs)
        times = LayerTimes()
        with _telling(f"TensorRT failed to profile {self._file}"):
            self._buffers(inputs)
            self._profiler = times.profiler()
            self._opened.context.profiler = self._profiler
            for _ in range(PROFILE_WARM_UP + PROFILED_RUNS):
                # TensorRT reports when the run has ended, before this returns.
                self._enqueue()
            self._opened.stream.synchronize()
        return {name: calls[PROFILE_WARM_UP:] for name, calls in times.by_layer.items()}

    def information(self) -> str:
        """The engine inspector's JSON of all layers."""
        return engine_information(self._opened.loaded.engine)

    def describe(self) -> EngineDescription:
        """By the engine inspector."""
        import tensorrt as trt

        opened = self._opened
        return EngineDescription(
            provider=f"TensorRT {trt.__version__}",
            inputs={name: facts.shape for name, facts in opened.inputs.items()},
            input_types={name: facts.dtype for name, facts in opened.inputs.items()},
            outputs={name: facts.shape for name, facts in opened.outputs.items()},
            operators=kinds(self.information()),
        )


@contextmanager
def _telling(what: str) -> Generator[None]:
    """CUDA's errors, which torch raises, as ExportError."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"{what}: {str(error).splitlines()[0]}") from error
