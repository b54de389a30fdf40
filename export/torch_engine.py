"""The engines that PyTorch runs, eager or compiled; importing it imports torch."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..pipeline.errors import ExportError
from ..pipeline.processor import has_bf16
from ..pipeline.quiet import quiet
from .device_clock import event_timed
from .device_memory import DeviceMemory
from .engine import Array, EngineDescription
from .measurement import OperatorTime
from .torch_program import Program, brief, cast_hint, demand_fitting

GRAPH_WARM_UP = 3
"""Runs before a CUDA graph is recorded: the first ones load kernels and allocate, which a recording must not."""


def demand_device(runtime: str, device: str) -> None:
    """Raise ExportError unless PyTorch can use the device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError(
            f"the target {runtime} cuda needs an NVIDIA GPU, and PyTorch {torch.__version__} finds none: install a "
            "build of PyTorch for CUDA and a driver that fits it, or say `device: cpu`"
        )


def demand_precision(runtime: str, device: str, precisions: Sequence[str]) -> None:
    """Raise ExportError for a precision that the device only emulates."""
    if "bf16" not in precisions:
        return
    if device == "cpu" and not has_bf16():
        raise ExportError(
            f"the target {runtime} cpu cannot run bf16: this processor has no bfloat16 instructions "
            "(avx512_bf16, amx_bf16 or ARM's bf16), and emulated it would be far slower than fp32; take bf16 out"
        )
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ExportError(
            f"the target {runtime} cuda cannot run bf16: {torch.cuda.get_device_name()} has no bfloat16 kernels, "
            "which GPUs have from compute capability 8.0 on; take bf16 out"
        )


@contextmanager
def exact_float32() -> Generator[None]:
    """Within the block CUDA computes float32 in float32: with TF32, products are rounded to 10 bits."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    # Some versions recommend newer switches, of which some versions' Inductor knows nothing.
    with quiet():
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32, cudnn.allow_tf32 = False, False
    try:
        yield
    finally:
        with quiet():
            matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def _threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchEngine:
    """A program on one device, opened by `with`; while it is open, the process has the engine's number of threads."""

    def __init__(
        self, file: Path, load: Callable[[], Program], *, device: str, threads: int, cuda_graph: bool = False
    ) -> None:
        self._file = file
        self._load = load
        self._device = device
        self._threads = threads
        self._cuda_graph = cuda_graph
        self._open = ExitStack()
        self._loaded: Program | None = None
        self._stream: torch.cuda.Stream | None = None
        self._memory = DeviceMemory()
        self._bound: tuple[Tensor, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._graph_output: Tensor | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_threads(self._threads))
            if self._device == "cuda":
                demand_device("engine", "cuda")
                stack.enter_context(exact_float32())
            with self._counted():
                self._stream = torch.cuda.Stream() if self._device == "cuda" else None
                self._loaded = self._load()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._graph, self._graph_output, self._bound, self._loaded = None, None, (), None
        self._open.close()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The output by name. Raises ExportError when names, types or shapes do not fit, or when PyTorch fails."""
        tensors = self._on_device(inputs)
        output = self._called(tensors)
        self._wait()
        return {self._program.signature.output: output.cpu().numpy()}

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Put copies of the inputs on the device; the outputs are the allocator's, which keeps their memory."""
        self._graph, self._graph_output = None, None
        # What the allocator and the driver give out, kernels and workspaces included.
        with self._counted():
            self._bound = self._on_device(inputs)
            self._called(self._bound)
            if self._cuda_graph:
                self._record()

    def timed(self, count: int) -> NDArray[np.float64]:
        """Seconds of each of `count` runs on the bound inputs; on a GPU the host waits for the end of each."""
        step, wait = self._step(), self._wait
        seconds = np.empty(count)
        with torch.inference_mode(), self._on_stream():
            wait()
            for index in range(count):
                begun = perf_counter()
                step()
                wait()
                seconds[index] = perf_counter() - begun
        return seconds

    def device_timed(self, count: int) -> NDArray[np.float64] | None:
        """Likewise between two events on the GPU's stream; None on the CPU."""
        if self._device == "cpu":
            return None
        assert self._stream is not None  # a GPU's engine has its own
        with torch.inference_mode(), self._on_stream():
            self._wait()
            return event_timed(self._step(), self._stream, count)

    def device_memory_bytes(self) -> int | None:
        """What loading and binding took of the GPU, for all that was bound so far; None on the CPU."""
        return None if self._device == "cpu" else self._memory.taken_bytes

    def describe(self) -> EngineDescription:
        """Runs the program once on zeros, two samples of them, where its operators are only known when they run."""
        signature = self._program.signature
        zeros = {name: np.zeros(_filled(each.shape, 2), each.dtype) for name, each in signature.inputs.items()}
        with torch.inference_mode(), self._on_stream():
            operators = self._program.operators(self._on_device(zeros))
        name = torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        return EngineDescription(
            provider=f"torch {torch.__version__} {name}",
            inputs={name: each.shape for name, each in signature.inputs.items()},
            input_types={name: each.dtype for name, each in signature.inputs.items()},
            outputs={signature.output: signature.output_type.shape},
            operators=dict(sorted(operators.items())),
        )

    def operator_times(self, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """Every operator, or kernel, of a run with the median time of its calls, by PyTorch's profiler."""
        from .torch_profile import profiled

        self.bind(inputs)
        call, bound, module = self._program.call, self._bound, self._program.module
        with torch.inference_mode(), self._on_stream():
            return profiled(lambda: call(bound), module, device=self._device)

    @property
    def _program(self) -> Program:
        assert self._loaded is not None  # inside the with block
        return self._loaded

    def _on_device(self, inputs: Mapping[str, Array]) -> tuple[Tensor, ...]:
        wanted = self._program.signature.inputs
        demand_fitting(self._file, wanted, inputs)
        with self._on_stream():
            # Copies: a caller's array may be read-only or change, and no model may write into it.
            return tuple(torch.tensor(np.ascontiguousarray(inputs[name]), device=self._device) for name in wanted)

    def _called(self, tensors: Sequence[Tensor]) -> Tensor:
        try:
            with torch.inference_mode(), self._on_stream():
                return self._program.call(tensors)
        except Exception as error:  # a model's own code may raise anything
            words = brief(error) + cast_hint(error, self._program.signature.precision)
            raise ExportError(f"{self._file}: PyTorch failed to run it: {words}") from error

    def _record(self) -> None:
        """Record a run as a CUDA graph; ExportError where one of its operators cannot be recorded."""
        for _ in range(GRAPH_WARM_UP):
            self._called(self._bound)
        self._wait()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.inference_mode(), torch.cuda.graph(graph, stream=self._stream):
                self._graph_output = self._program.call(self._bound)
        except RuntimeError as error:
            raise ExportError(
                f"{self._file} cannot be recorded as a CUDA graph: {brief(error)}\nMend: say `cuda_graph: false`."
            ) from error
        self._graph = graph

    def _step(self) -> Callable[[], object]:
        assert self._bound  # bind comes first
        if self._graph is not None:
            return self._graph.replay
        call, bound = self._program.call, self._bound
        return lambda: call(bound)

    def _counted(self) -> AbstractContextManager[object]:
        return nullcontext() if self._device == "cpu" else self._memory.counted()

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _filled(shape: Sequence[int | None], batch: int) -> tuple[int, ...]:
    return tuple(batch if size is None else size for size in shape)
