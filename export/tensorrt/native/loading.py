"""From an engine's file to TensorRT's engine, after its manifest was held against this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....pipeline.errors import ExportError
from ..manifest import Manifest, TensorFacts, device_mismatch, file_problem, refusal
from ..messages import Messages
from .device import this_device
from .logger import logger_to

if TYPE_CHECKING:
    import tensorrt as trt
    import torch


@dataclass(frozen=True)
class Loaded:
    """An engine, and what must live as long as it does."""

    engine: "trt.ICudaEngine"
    runtime: "trt.Runtime"
    logger: "trt.ILogger"
    messages: Messages


def loaded(file: Path) -> Loaded:
    """The engine in a file.

    Raises ExportError for a file that is missing, empty or damaged, for one of another GPU or version, and for what
    TensorRT itself refuses. An engine without a manifest, from elsewhere, is tried as it is.
    """
    if not file.is_file():
        raise ExportError(f"there is no engine file {file}; run again to build it")
    manifest = Manifest.beside(file)
    problem = None if manifest is None else file_problem(manifest, file)
    if problem is not None:
        raise refusal(file, problem)
    here = this_device()
    mismatch = None if manifest is None else device_mismatch(manifest, here)
    if mismatch is not None:
        raise refusal(file, mismatch)
    compatible = manifest is not None and manifest.plan.version_compatible
    return deserialized(file.read_bytes(), str(file), host_code=compatible)


def deserialized(content: bytes, called: str, *, host_code: bool) -> Loaded:
    """The engine in a file's content; ExportError where TensorRT refuses it.

    `host_code` lets it run code of its own, as version-compatible engines must: only for engines that were built here.
    """
    import tensorrt as trt

    messages = Messages()
    logger = logger_to(messages)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = host_code
    engine = runtime.deserialize_cuda_engine(content) if content else None
    if engine is None:
        raise messages.failure(f"{called} is no engine that TensorRT {trt.__version__} can load on this GPU")
    return Loaded(engine, runtime, logger, messages)


def edges_of(content: bytes, called: str, *, host_code: bool) -> tuple[dict[str, TensorFacts], dict[str, TensorFacts]]:
    """The inputs and outputs of the engine in a file's content, which proves that it loads."""
    return tensor_facts(deserialized(content, called, host_code=host_code).engine)


def tensor_facts(engine: "trt.ICudaEngine") -> tuple[dict[str, TensorFacts], dict[str, TensorFacts]]:
    """Inputs and outputs by name; ExportError for types that NumPy has not."""
    import tensorrt as trt

    inputs: dict[str, TensorFacts] = {}
    outputs: dict[str, TensorFacts] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = int(engine.get_tensor_mode(name)) == int(trt.TensorIOMode.INPUT)
        (inputs if is_input else outputs)[name] = _facts(engine, name, is_input=is_input)
    return inputs, outputs


def _facts(engine: "trt.ICudaEngine", name: str, *, is_input: bool) -> TensorFacts:
    import tensorrt as trt

    if engine.get_tensor_location(name) == trt.TensorLocation.HOST:
        raise ExportError(
            f"the engine reads or writes {name} in the host's memory, which decides shapes; not supported"
        )
    shape = tuple(None if size < 0 else size for size in sizes(engine.get_tensor_shape(name)))
    dtype = str(torch_type(engine, name)).removeprefix("torch.")
    if not is_input or None not in shape:
        return TensorFacts(shape=shape, dtype=dtype)
    least, _, most = engine.get_tensor_profile_shape(name, 0)
    return TensorFacts(shape=shape, dtype=dtype, least=sizes(least), most=sizes(most))


def sizes(dims: "trt.Dims") -> tuple[int, ...]:
    """A shape of TensorRT's, -1 for what is free."""
    return tuple(dims[index] for index in range(len(dims)))


def torch_type(engine: "trt.ICudaEngine", name: str) -> "torch.dtype":
    """Of an input or output."""
    import tensorrt as trt
    import torch

    kinds = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT8: torch.int8,
        trt.DataType.UINT8: torch.uint8,
        trt.DataType.BOOL: torch.bool,
    }
    kind = engine.get_tensor_dtype(name)
    if kind not in kinds:
        raise ExportError(
            f"the engine's {name} is of type {kind.name}, which NumPy has not.\n"
            "Mend: cast it to float32 at the edge of the ONNX graph."
        )
    return kinds[kind]
