"""From an ONNX file to a serialized engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ....pipeline.errors import ExportError
from ..messages import Messages, ParserProblem, parser_failure
from ..plan import BuildPlan, HardwareCompatibility
from .logger import logger_to

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Serialized:
    """What the builder returned."""

    engine: bytes
    timing_cache: bytes
    """With what was measured on top of what it was given."""
    remarks: tuple[str, ...]


def serialized_engine(onnx: Path, plan: BuildPlan, timing_cache: bytes) -> Serialized:
    """Parse and build, as a strongly typed network; ExportError with what TensorRT says where it refuses."""
    import tensorrt as trt

    messages = Messages()
    logger = logger_to(messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)  # holds the weights until the engine is built
    if not parser.parse_from_file(str(onnx)):
        raise parser_failure(str(onnx), _problems(parser), messages)
    _demand_plain_inputs(network, onnx)
    config = builder.create_builder_config()
    _apply(plan, config)
    _add_profile(plan, builder, config, messages)
    cache, refused = _cache(config, timing_cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise messages.failure(f"TensorRT cannot build an engine of {onnx}")
    remarks = (*plan.in_words(), *refused, *messages.remarks())
    return Serialized(bytes(engine), bytes(cache.serialize()), remarks)


def _problems(parser: "trt.OnnxParser") -> list[ParserProblem]:
    import tensorrt as trt

    found: list[ParserProblem] = []
    for index in range(parser.num_errors):
        error: trt.ParserError = parser.get_error(index)
        found.append(ParserProblem(error.node_name(), error.node_operator(), error.desc()))
    return found


def _demand_plain_inputs(network: "trt.INetworkDefinition", onnx: Path) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise ExportError(
                f"{onnx}: the values of the input {tensor.name} decide shapes in the graph, which cannot be timed with "
                "bound buffers.\nMend: make that input a constant of the graph."
            )


def _apply(plan: BuildPlan, config: "trt.IBuilderConfig") -> None:
    import tensorrt as trt

    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the audit reads types and ONNX names
    config.builder_optimization_level = plan.optimization_level
    config.hardware_compatibility_level = _level(plan.hardware_compatibility)
    if not plan.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default
    if plan.sparse_weights:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if plan.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if plan.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)


def _level(compatibility: HardwareCompatibility) -> "trt.HardwareCompatibilityLevel":
    import tensorrt as trt

    match compatibility:
        case "none":
            return trt.HardwareCompatibilityLevel.NONE
        case "same_compute_capability":
            return trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        case "ampere_plus":
            return trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _add_profile(plan: BuildPlan, builder: "trt.Builder", config: "trt.IBuilderConfig", messages: Messages) -> None:
    if not plan.profile:
        return
    profile = builder.create_optimization_profile()
    for name, shape in plan.profile.items():
        try:
            profile.set_shape(name, shape.least, shape.usual, shape.most)
        except ValueError as error:
            raise ExportError(f"TensorRT refuses the profile of the input {name}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise messages.failure("TensorRT refuses the profile")


def _cache(config: "trt.IBuilderConfig", content: bytes) -> "tuple[trt.ITimingCache, tuple[str, ...]]":
    """The cache that the builder reads and adds to, and what is to be said where it does not take the given one."""
    cache = config.create_timing_cache(content)
    if config.set_timing_cache(cache, False):
        return cache, ()
    fresh = config.create_timing_cache(b"")
    if not config.set_timing_cache(fresh, False):
        raise ExportError("TensorRT takes no timing cache, not even an empty one")
    return fresh, ("TensorRT refused the timing cache, which is written anew",)
