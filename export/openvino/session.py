"""Reading a model by OpenVINO and compiling it for the CPU, and in words what went wrong."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ...pipeline.errors import ExportError, MissingDependency
from ...pipeline.processor import has_bf16
from ..fitting import Taken
from ..target import BF16

XML, BIN, ONNX = ".xml", ".bin", ".onnx"
FRONTENDS = {XML: "ir", ONNX: "onnx"}
"""By the ending: left to choose, OpenVINO tries all of them on a damaged file, and each complains on the terminal."""
NUMPY_NAMES = {
    **{"f64": "float64", "f32": "float32", "f16": "float16", "boolean": "bool"},
    **{f"{sign}{bits}": f"{word}{bits}" for sign, word in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}
"""Of OpenVINO's types; NumPy has no bf16, no 4-bit types and no such strings."""
PRECISION = ("framework", "potstill.precision")
"""Where OpenVINO keeps what the ONNX file's metadata said."""

ROUNDED_AT_ONCE = 32
"""How many values get a grid of their own that a linear layer reads whose weights are stored in few bits."""

NO_BF16 = (
    "this processor does not multiply bfloat16 itself, and OpenVINO would compute in float32 or emulate it: take bf16 "
    "out of the target's precision, or measure on a processor with avx512_bf16 or amx_bf16"
)


def openvino() -> Any:
    """The package; MissingDependency when it is not installed."""
    try:
        return import_module("openvino")
    except ImportError as error:
        raise MissingDependency(
            "the target openvino needs OpenVINO: pip install openvino. Without it, take the target out."
        ) from error


def settings(threads: int, *, profile: bool = False) -> dict[str, Any]:
    """With which a model is compiled: one query at a time, computed in the types that the model is written in."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Without this, float32 models are computed in bfloat16 wherever the processor has AMX.
        "INFERENCE_PRECISION_HINT": "dynamic",
        # 0 leaves what these layers read in float: for a ViT of 192 channels that took 1.3 times as long.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": ROUNDED_AT_ONCE,
        # Pinned, two engines of two processes share one core while others are idle.
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
        "PERF_COUNT": profile,
    }


class Refusal(Exception):
    """Why OpenVINO does not take a file or a model, on one line."""


def opened(file: Path) -> Any:
    """The model of an IR or ONNX file, not yet compiled.

    Raises ExportError when a file is missing or damaged, when OpenVINO cannot read it, and for bf16 that the processor
    has not.
    """
    if not file.is_file():
        raise ExportError(f"there is no engine file {file}; run again to build it")
    weights = file.with_suffix(BIN)
    if file.suffix == XML and not weights.is_file():
        raise ExportError(f"{file} has no {weights.name} beside it, which holds its weights; run again to build it")
    try:
        return converted(file)
    except Refusal as why:
        raise ExportError(
            f"{file} is damaged, or holds what OpenVINO {version()} cannot read: {why}\n"
            "Mend: remove a run's engine and run again, export a file of your own again, "
            "or install a newer openvino."
        ) from why


def converted(file: Path) -> Any:
    """The model of an IR or ONNX file, or Refusal; ExportError for bf16 that the processor has not."""
    try:
        frontend = openvino().frontend.FrontEndManager().load_by_framework(FRONTENDS[file.suffix])
        model = frontend.convert(frontend.load(str(file)))
    except Exception as error:  # OpenVINO raises RuntimeError and types of its own without a public base class
        raise Refusal(brief(error)) from error
    if not model.outputs:
        raise Refusal("it holds no model")
    if precision_of(model) == BF16:
        demand_bf16()
    return model


def compiled(model: Any, shapes: Mapping[str, Sequence[int]], threads: int = 1, *, profile: bool = False) -> Any:
    """For inputs of these shapes, by their names, on this machine's CPU; or Refusal. The model takes the shapes on."""
    try:
        ports = {name_of(port, place): port for place, port in enumerate(model.inputs)}
        model.reshape({ports[name]: list(shape) for name, shape in shapes.items()})
        return openvino().Core().compile_model(model, "CPU", settings(threads, profile=profile))
    except Exception as error:  # likewise
        raise Refusal(brief(error)) from error


def one_sample(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's inputs with 1 for every free dimension."""
    ports = {name_of(port, place): taken(port) for place, port in enumerate(model.inputs)}
    return {name: tuple(1 if size is None else size for size in each.shape) for name, each in ports.items()}


def precision_of(model: Any) -> str | None:
    """That an engine of ours was built for; None of models that others made."""
    path = list(PRECISION)
    return str(model.get_rt_info(path).astype(str)) if model.has_rt_info(path) else None


def demand_bf16() -> None:
    """Raise ExportError where the processor has no products of bfloat16."""
    supported = openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in supported or not has_bf16():
        raise ExportError(NO_BF16)


def version() -> str:
    """Such as ``2026.4.1``."""
    return str(openvino().__version__).partition("-")[0]


def brief(error: Exception) -> str:
    """What a message says behind the places in OpenVINO's source that it begins with, on one line."""
    noise = re.compile(r"^(Exception from |Check '.*' failed at |FrontEnd API failed with )|^\s*$")
    lines = [line.strip() for line in str(error).splitlines() if not noise.match(line)]
    return " ".join(lines)[:500] or type(error).__name__


def taken(port: Any) -> Taken:
    """The type and shape of an input or output."""
    kind, shape = str(port.get_element_type().get_type_name()), port.get_partial_shape()
    sizes = () if shape.rank.is_dynamic else tuple(shape)
    return Taken(
        NUMPY_NAMES.get(kind, kind), tuple(None if size.is_dynamic else int(size.get_length()) for size in sizes)
    )


def name_of(port: Any, place: int) -> str:
    """An input's or output's name, or its place where it has none."""
    return min(port.get_names(), default=str(place))
