"""Opening a session: by which provider, with which options, and in words what went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...pipeline.errors import ExportError, MissingDependency

if TYPE_CHECKING:
    from onnx import ModelProto

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDERS: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's names for them."""

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
FATAL = 4
"""ONNX Runtime's log level for nothing but crashes: what goes wrong is raised as well, and would be said twice."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """What a session is opened with, besides the file."""

    provider: Provider = "cpu"
    threads: int = 1
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the provider, by ONNX Runtime's names; those of TensorRT's provider begin with ``trt_``."""


CPU = SessionSettings()


def opened(
    file: Path,
    settings: SessionSettings = CPU,
    *,
    optimized_file: Path | None = None,
    profile: Path | None = None,
    records_placement: bool = False,
) -> Any:
    """An InferenceSession; ExportError when ONNX Runtime does not load the file or takes another provider for it."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    if optimized_file is not None:
        options.optimized_model_filepath = str(optimized_file)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if records_placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not file.is_file():
        raise ExportError(f"there is no engine file {file}; run again to build it")
    try:
        session = ort.InferenceSession(str(file), options, providers=_providers(settings))
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise ExportError(
            f"{file} is damaged, or holds what ONNX Runtime {ort.__version__} cannot run: {brief(error)}\n"
            "Mend: remove a run's engine and run again, export a file of your own again, "
            "or install a newer onnxruntime."
        ) from error
    # A provider that fails to load is replaced without a word; only the session tells.
    chosen = session.get_providers()[0]
    if chosen != PROVIDERS[settings.provider]:
        raise ExportError(f"ONNX Runtime runs {file} by {chosen} instead of {PROVIDERS[settings.provider]}")
    return session


def _providers(settings: SessionSettings) -> "list[tuple[str, dict[str, str]]]":
    """The one asked for, with CUDA's behind TensorRT's for what that one leaves; the CPU's is always the last."""
    trt = {name: value for name, value in settings.options.items() if name.startswith("trt_")}
    own = {name: value for name, value in settings.options.items() if name not in trt}
    if settings.provider != "tensorrt":
        return [(PROVIDERS[settings.provider], own)]
    shared = {name: own[name] for name in ("device_id", "user_compute_stream") if name in own}
    return [(PROVIDERS["tensorrt"], trt | shared), (PROVIDERS["cuda"], own)]


def tensorrt_options(file: Path) -> dict[str, str]:
    """Which types TensorRT's provider may use for a file: those that its graph holds, and no others."""
    import onnx

    graph = loaded(file).graph
    halves = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
    return {"trt_fp16_enable": str(int(halves)), "trt_int8_enable": str(int(quantized))}


def onnxruntime() -> Any:
    """The package, silenced; MissingDependency when it is not installed."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependency(
            "the target onnxruntime needs ONNX Runtime: pip install onnxruntime. Without it, take the target out."
        ) from error
    package: Any = onnxruntime
    package.set_default_logger_severity(FATAL)
    return package


def build_information() -> Any:
    """How the installed ONNX Runtime was built."""
    onnxruntime()
    from onnxruntime.capi import build_and_package_info  # pyright: ignore[reportMissingTypeStubs]

    return build_and_package_info


def wheel() -> tuple[str, str]:
    """The package of pip whose files are loaded, and its version: two bring the folder, and the last one wins."""
    built = build_information()
    return str(built.package_name), str(built.__version__)


def loaded(file: Path) -> "ModelProto":
    """A model file as a graph."""
    import onnx

    return onnx.load(file)  # pyright: ignore[reportUnknownMemberType] - its formats are untyped


def shape_of(entry: Any) -> tuple[int | None, ...]:
    """Of an input or output of a session; None is a free dimension."""
    return tuple(size if isinstance(size, int) else None for size in entry.shape)


def type_name(entry: Any) -> str:
    """As NumPy calls it, or ONNX Runtime where NumPy has no such type."""
    dtype = NUMPY_TYPES.get(entry.type)
    return str(entry.type) if dtype is None else np.dtype(dtype).name


def brief(error: Exception) -> str:
    """The last part of a message like ``[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model … failed: …``."""
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:500]
