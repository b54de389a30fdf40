"""ONNX Runtime on the CPU."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from ...pipeline.errors import ExportError, MissingDependency
from ..engine import Array, EngineDescription
from ..measurement import Audit, OperatorTime
from ..target import HALF, QUANTIZED, OnnxTarget

if TYPE_CHECKING:
    from onnx import ModelProto

FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider"}
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
KERNEL = "_kernel_time"
"""What ONNX Runtime's profile appends to a node's name."""
FATAL = 4
"""ONNX Runtime's log level for nothing but crashes: what goes wrong is raised as well, and would be said twice."""


def _not_bf16(value: object) -> object:
    if value == "bf16":
        raise ValueError(
            "bf16 cannot run: ONNX Runtime's CPU has no bfloat16 kernels, not even for convolutions; "
            "allowed: fp32, fp16, int8, int8_weights, int4_weights"
        )
    return value


Precision = Annotated[Literal["fp32", "fp16", "int8", "int8_weights", "int4_weights"], BeforeValidator(_not_bf16)]


class OnnxRuntimeTarget(OnnxTarget, frozen=True, extra="forbid"):
    """ONNX Runtime, one engine file being a plain ONNX model that any program may load."""

    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    runtime: Literal["onnxruntime"] = "onnxruntime"
    device: Literal["cpu"] = "cpu"
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)

    def check(self) -> None:
        """Raise MissingDependency when ONNX Runtime is not installed."""
        _onnxruntime()

    def build(self, model: "ModelProto", precision: str, folder: Path) -> Path:
        """Write ``model.onnx`` in ONNX Runtime's dialect and load it once."""
        return build(model, folder)

    def open(self, file: Path) -> "Engine":
        """A session on one model file."""
        return Engine(file, device=self.device, threads=self.threads)

    def operator_times(self, file: Path, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """Medians over the calls of one profiled session."""
        return operator_times(file, inputs, device=self.device, threads=self.threads)

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """For fp16: how many layers the CPU really computes so."""
        from ..audit import half_remark

        return (half_remark(_loaded(file), optimized(file)),) if precision == HALF else ()

    def audit(self, file: Path, precision: str) -> Audit | None:
        """Every layer's precision after ONNX Runtime's own optimisation; raises nothing where the share is low."""
        from ..audit import audited

        if precision not in QUANTIZED:
            return None
        return audited(_loaded(file), optimized(file), self.min_int8_share)


def build(model: "ModelProto", folder: Path) -> Path:
    """Write an exported model in the dialect for the CPU; raises ExportError when ONNX Runtime does not load it."""
    from ..dialects import for_onnxruntime_cpu
    from ..onnx_file import check

    written = for_onnxruntime_cpu(model)
    check(written)
    file = folder / FILE
    file.write_bytes(written.SerializeToString(deterministic=True))
    with Engine(file):
        return file


PROFILED_RUNS = 50
PROFILE_WARM_UP = 5


def operator_times(
    file: Path, inputs: Mapping[str, Array], *, device: str = "cpu", threads: int = 1
) -> tuple[OperatorTime, ...]:
    """Every operator of the optimised graph with the median time of its calls, in the order they run."""
    from ..origins import Origins

    with TemporaryDirectory() as folder:
        session = _session(file, device=device, threads=threads, profile=Path(folder) / "profile")
        for _ in range(PROFILE_WARM_UP + PROFILED_RUNS):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_bytes())
    calls: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(KERNEL):
            key = (name.removesuffix(KERNEL), str(event["args"]["op_name"]))
            calls.setdefault(key, []).append(event["dur"] / 1e3)
    origins = Origins(_loaded(file).graph)
    return tuple(
        OperatorTime(
            layer=origins.layer_of(name, operator), operator=operator, ms=float(np.median(each[PROFILE_WARM_UP:]))
        )
        for (name, operator), each in calls.items()
    )


def optimized(file: Path) -> "ModelProto":
    """The graph that ONNX Runtime makes of a model file for this machine's CPU."""
    with TemporaryDirectory() as folder:
        destination = Path(folder) / FILE
        _session(file, device="cpu", threads=1, optimized_file=destination)
        return _loaded(destination)


class Engine:
    """A session, opened by `with`."""

    def __init__(self, file: Path, *, device: str = "cpu", threads: int = 1) -> None:
        self._file = file
        self._device = device
        self._threads = threads
        self._session: Any = None
        self._binding: Any = None
        self._bound: list[Any] = []

    def __enter__(self) -> Self:
        self._session = _session(self._file, device=self._device, threads=self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._session, self._binding, self._bound = None, None, []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ExportError when names, types or shapes do not fit."""
        names = [output.name for output in self._session.get_outputs()]
        outputs = cast(Sequence[Array], self._run(inputs, names))
        return dict(zip(names, outputs, strict=True))

    def _run(self, inputs: Mapping[str, Array], names: Sequence[str]) -> Any:
        self._check(inputs)
        try:
            return self._session.run(names, dict(inputs))
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ExportError(f"{self._file}: ONNX Runtime failed to run it: {_brief(error)}") from error

    def _check(self, inputs: Mapping[str, Array]) -> None:
        wanted = {entry.name: entry for entry in self._session.get_inputs()}
        if set(inputs) != set(wanted):
            raise ExportError(
                f"{self._file} takes the inputs {', '.join(wanted)}; given were {', '.join(inputs) or 'none'}"
            )
        for name, array in inputs.items():
            dtype, shape = NUMPY_TYPES.get(wanted[name].type), _shape(wanted[name])
            fits = len(shape) == array.ndim and all(
                size in (None, given) for size, given in zip(shape, array.shape, strict=False)
            )
            if not fits or (dtype is not None and array.dtype != dtype):
                expected = f"{_type_name(wanted[name])} ({_written(shape)})"
                raise ExportError(
                    f"{self._file}: input {name} takes {expected}; given was {array.dtype} ({_written(array.shape)})"
                )

    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Bind copies of the inputs, and outputs of the shapes that one run gives."""
        make = _onnxruntime().OrtValue.ortvalue_from_numpy
        binding = self._session.io_binding()
        # The binding holds addresses only, so the buffers must live as long.
        held = [make(np.ascontiguousarray(array)) for array in inputs.values()]
        for name, buffer in zip(inputs, held, strict=True):
            binding.bind_ortvalue_input(name, buffer)
        for name, output in self.run(inputs).items():
            buffer = make(np.empty_like(output))
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

    def device_timed(self, count: int) -> None:
        """None: the CPU has no clock but the host's."""

    def device_memory_bytes(self) -> None:
        """None: everything is in the host's memory."""

    def describe(self) -> EngineDescription:
        """Read the optimised graph; costs a second load of the model."""
        operators = Counter(node.op_type for node in optimized(self._file).graph.node)
        return EngineDescription(
            provider=self._session.get_providers()[0],
            inputs={entry.name: _shape(entry) for entry in self._session.get_inputs()},
            input_types={entry.name: _type_name(entry) for entry in self._session.get_inputs()},
            outputs={entry.name: _shape(entry) for entry in self._session.get_outputs()},
            operators=dict(sorted(operators.items())),
        )


def _session(
    file: Path, *, device: str, threads: int, optimized_file: Path | None = None, profile: Path | None = None
) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    if optimized_file is not None:
        options.optimized_model_filepath = str(optimized_file)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not file.is_file():
        raise ExportError(f"there is no engine file {file}; run again to build it")
    try:
        session = ort.InferenceSession(str(file), options, providers=[PROVIDERS[device]])
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise ExportError(
            f"{file} is damaged, or holds what ONNX Runtime {ort.__version__} cannot run: {_brief(error)}\n"
            "Mend: remove the file and run again, or install a newer onnxruntime."
        ) from error
    # A provider that fails to load is replaced without a word; only the session tells.
    chosen = session.get_providers()[0]
    if chosen != PROVIDERS[device]:
        raise ExportError(f"ONNX Runtime runs {file} by {chosen} instead of {PROVIDERS[device]}")
    return session


def _loaded(file: Path) -> "ModelProto":
    import onnx

    return onnx.load(file)  # pyright: ignore[reportUnknownMemberType] - its formats are untyped


def _onnxruntime() -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependency(
            "the target onnxruntime needs ONNX Runtime: pip install onnxruntime. Without it, take the target out."
        ) from error
    package: Any = onnxruntime
    package.set_default_logger_severity(FATAL)
    return package


def _shape(entry: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in entry.shape)


def _type_name(entry: Any) -> str:
    dtype = NUMPY_TYPES.get(entry.type)
    return str(entry.type) if dtype is None else np.dtype(dtype).name


def _written(shape: Sequence[int | None]) -> str:
    return ", ".join("any" if size is None else str(size) for size in shape)


def _brief(error: Exception) -> str:
    """The last part of a message like ``[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model … failed: …``."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:500]
