"""TensorRT 10 and 11 on NVIDIA GPUs: strongly typed networks, whose precision is written into the ONNX graph."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue

from ...pipeline.errors import ExportError, PotstillError
from ...pipeline.files import write_atomically
from ..measurement import Audit, OperatorTime
from ..target import FLOAT, HALF, INT8, Made, OnnxTarget, Source, scheme_of
from ..tensorrt.manifest import Device, Manifest, demand_precision
from ..tensorrt.plan import BuildPlan, HardwareCompatibility, Range

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..engine import Array
    from ..tensorrt.native.execution import TensorRTEngine
    from ..tensorrt_file import TensorRTModel

AS_GIVEN = "as given"
"""The precision of a graph that someone else made."""


def _rising(ranges: dict[str, Range]) -> dict[str, Range]:
    for name, (least, usual, most) in ranges.items():
        if not 1 <= least <= usual <= most:
            raise ValueError(f"{name} has {least}, {usual}, {most}; give the least, the usual and the largest size")
    return ranges


class TensorRTTarget(OnnxTarget, frozen=True, extra="forbid"):
    """An engine for one GPU and one version of TensorRT, with its manifest and its ONNX file beside it."""

    suffixes: ClassVar[tuple[str, ...]] = (".engine", ".plan")
    packages: ClassVar[tuple[str, ...]] = ("tensorrt",)
    runtime: Literal["tensorrt"] = "tensorrt"
    device: Literal["cuda"] = "cuda"
    precision: Annotated[tuple[Literal["fp32", "fp16", "bf16", "int8", "fp8"], ...], Field(min_length=1)] = ("fp32",)
    """fp8 has the ranges of int8: both need a `quantize` stage with `scheme: int8` and `grids: symmetric`."""
    floats: Literal["fp16", "bf16", "fp32"] = "fp16"
    """What int8 and fp8 engines are in where they are not in int8 or fp8."""
    shapes: Annotated[dict[str, Range], AfterValidator(_rising)] = Field(default_factory=dict[str, Range])
    """Least, usual and largest size of free dimensions but the batch, by their names or that of their input."""
    tf32: bool = False
    """Whether fp32 engines may multiply with inputs of ten bits."""
    builder_optimization_level: Annotated[int, Field(ge=0, le=5)] = 3
    """How long the builder looks for kernels."""
    workspace_mb: Annotated[int, Field(ge=1)] | None = None
    """Scratch memory that a kernel may use; without, all of the GPU's."""
    version_compatible: bool = False
    """Whether the engine is to run on later minor versions of TensorRT, too."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Whether the engine is to run on other GPUs, too."""
    timing_cache: Path | None = None
    """A file of the builder's measurements that builds share; without, each engine has one of its own beside it."""
    cuda_graph: bool = True
    """Whether what is timed is one launch of a captured CUDA graph."""

    def build_settings(self) -> dict[str, JsonValue]:
        """All that goes into the plan, and the GPU and the TensorRT that it is for."""
        keys = {"floats", "shapes", "batch", "tf32", "builder_optimization_level", "workspace_mb"}
        keys |= {"version_compatible", "hardware_compatibility"}
        here = _device_if_any()
        device: JsonValue = None if here is None else here.model_dump(mode="json")
        settings = self.model_dump(mode="json", include=keys) | {"largest_batch": self.all_batches[-1]}
        return super().build_settings() | settings | {"built_on": device}

    def measure_settings(self) -> dict[str, JsonValue]:
        """Whether a CUDA graph is timed, besides what every target has."""
        return super().measure_settings() | {"cuda_graph": self.cuda_graph}

    def check(self) -> None:
        """Raise MissingDependency without TensorRT, ExportError without a GPU that computes in the precisions."""
        from ..tensorrt.native.device import this_device

        here = this_device()
        quantized = any(scheme_of(precision) is not None for precision in self.precision)
        for precision in (*self.precision, *((self.floats,) if quantized else ())):
            demand_precision(here, precision)

    def graph(self, source: Source, precision: str) -> "tuple[ModelProto, tuple[str, ...]]":
        """The artifact as TensorRT is given it, proven in ONNX Runtime."""
        made = self._model(source, precision)
        return made.model, made.remarks

    def _model(self, source: Source, precision: str) -> "TensorRTModel":
        from ..tensorrt_file import float_model, quantized_model

        artifact, data, metadata = source.artifact, source.data, source.metadata
        match precision:
            case "int8" | "fp8":
                return quantized_model(artifact, precision, self.floats, data, metadata)
            case "fp32" | "fp16" | "bf16":
                return float_model(artifact, precision, data, metadata)
            case _:
                raise AssertionError(f"unknown precision {precision}")

    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Build the engine of an artifact, to be compared with the model under the roundings that the graph has."""
        made = self._model(source, precision)
        return Made(
            self.build(made.model, precision, folder),
            made.remarks,
            made.reference,
            compared_as=HALF if precision == FLOAT and self.tf32 else None,  # TF32 keeps as many bits as fp16
            in_half=self.floats != FLOAT,
        )

    def build(self, model: "ModelProto", precision: str, folder: Path) -> Path:
        """Write the engine of a graph, and beside it the graph and the manifest.

        A graph as `exported` makes it for int8, of a single layer, is brought into TensorRT's form first.
        """
        from ..tensorrt.engine_files import nothing_left_of_failure
        from ..tensorrt.onnx_beside import FILE

        written = folder / FILE
        with nothing_left_of_failure(written):
            write_atomically(written, self._in_form(model, precision).SerializeToString(deterministic=True))
            return self._built(written, precision)

    def _in_form(self, model: "ModelProto", precision: str) -> "ModelProto":
        from ..dialects.tensorrt import for_tensorrt, is_in_exported_form
        from ..half import in_half

        if precision != INT8 or not is_in_exported_form(model):
            return model
        form = for_tensorrt(model).model
        # Without samples there are no ranges; a layer's time does not hang on them.
        return form if self.floats == FLOAT else in_half(form, self.floats, {}).model

    def from_file(self, file: Path, folder: Path) -> Path:
        """The engine of an ONNX file that someone else made, in the types that it has; a copy of the file is kept."""
        from ..tensorrt.engine_files import nothing_left_of_failure
        from ..tensorrt.onnx_beside import copied

        copies = copied(file, folder)
        if not copies:
            return self._built(file, AS_GIVEN)
        with nothing_left_of_failure(*copies):
            return self._built(copies[0], AS_GIVEN)

    def plan(self, model: "ModelProto") -> BuildPlan:
        """What the builder is told of a graph; ExportError where free dimensions have no range."""
        from ..tensorrt.plan import is_sparse, profile_of

        return BuildPlan(
            profile=profile_of(model, (self.batch[0], *self.all_batches), self.shapes),
            tf32=self.tf32,
            sparse_weights=is_sparse(model),
            version_compatible=self.version_compatible,
            hardware_compatibility=self.hardware_compatibility,
            optimization_level=self.builder_optimization_level,
            workspace_bytes=None if self.workspace_mb is None else self.workspace_mb * 2**20,
        )

    def _built(self, onnx: Path, precision: str) -> Path:
        from ..tensorrt.engine_files import ENGINE, build_beside
        from ..tensorrt.onnx_beside import read_onnx

        engine = onnx.with_name(ENGINE)
        build_beside(onnx, engine, self.plan(read_onnx(onnx)), precision, self.timing_cache)
        return engine

    def open(self, file: Path) -> "TensorRTEngine":
        """The engine in a file, held against its manifest when it is entered."""
        from ..tensorrt.native.execution import TensorRTEngine

        return TensorRTEngine(file, cuda_graph=self.cuda_graph)

    def files_of(self, file: Path) -> tuple[Path, ...]:
        """With the manifest, where there is one; the ONNX file is not needed to run."""
        from ..tensorrt.manifest import manifest_file

        beside = manifest_file(file)
        return (file, beside) if beside.is_file() else (file,)

    def rebuild(self, file: Path) -> Path:
        """Build an engine again from the ONNX file beside it, as it was built, for this machine."""
        from ..tensorrt.engine_files import rebuild

        return rebuild(file)

    def operator_times(self, file: Path, inputs: "Mapping[str, Array]") -> tuple[OperatorTime, ...]:
        """Medians over the calls of one profiled run, without a CUDA graph."""
        from ..tensorrt.inspection import engine_layers, has_details, operator_times_of

        with self.open(file) as engine:
            information = engine.information()
            layers = engine_layers(information) if has_details(information) else ()
            return operator_times_of(engine.layer_times(inputs), layers)

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """What the builder said, and in which types the engine's layers hand their values on."""
        from ..tensorrt.inspection import engine_layers, tensor_remark

        manifest = Manifest.beside(file)
        if manifest is None:
            return ("it has no manifest beside it: what it was built of and for could not be checked",)
        with self.open(file) as engine:
            return (*manifest.remarks, tensor_remark(engine_layers(engine.information())))

    def audit(self, file: Path, precision: str) -> Audit | None:
        """Every layer's precision by the engine inspector; None for fp32, where no layer could be in more."""
        from ..tensorrt.onnx_beside import read_onnx
        from ..tensorrt.precision_audit import AUDITED, audited

        if precision not in AUDITED:
            return None
        manifest = Manifest.beside(file)
        if manifest is None:
            raise ExportError(f"{file} has no manifest beside it, which names the graph that it was built from")
        with self.open(file) as engine:
            information = engine.information()
        return audited(read_onnx(file.with_name(manifest.onnx)), information, precision, self.min_int8_share)


def _device_if_any() -> Device | None:
    from ..tensorrt.native.device import this_device

    with suppress(PotstillError):
        return this_device()
    return None
