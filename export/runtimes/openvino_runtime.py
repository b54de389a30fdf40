"""OpenVINO on the CPU."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import Field, JsonValue

from ...pipeline.errors import ExportError
from ..engine import Array
from ..measurement import Audit, LayerType, OperatorTime
from ..openvino.session import BIN, ONNX, XML, demand_bf16, openvino
from ..target import BF16, HALF, INT8, QUANTIZED, Made, OnnxTarget, Source

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..openvino.engine import Engine
    from ..openvino.runtime_graph import RuntimeGraph

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_weights", "int4_weights"]


class OpenVinoTarget(OnnxTarget, frozen=True, extra="forbid"):
    """OpenVINO's CPU plugin; the engine is its own XML file with the weights beside it, the batch left free."""

    suffixes: ClassVar[tuple[str, ...]] = (XML, ONNX)
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    runtime: Literal["openvino"] = "openvino"
    device: Literal["cpu"] = "cpu"
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)

    def build_settings(self) -> dict[str, JsonValue]:
        """Those of all targets, and the version of OpenVINO, which writes the file."""
        try:
            return super().build_settings() | {"openvino": version("openvino")}
        except PackageNotFoundError:
            return super().build_settings()

    def check(self) -> None:
        """Raise MissingDependency when OpenVINO is not installed, ExportError for bf16 that the processor has not."""
        openvino()
        if BF16 in self.precision:
            demand_bf16()

    def build(self, model: "ModelProto", precision: str, folder: Path) -> Path:
        """Write ``model.xml`` and its weights, made of the graph in OpenVINO's dialect."""
        from ..dialects import for_openvino
        from ..openvino.ir import write

        return write(for_openvino(model), model, folder)

    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Export the artifact, build its engine and compile it once; ExportError likewise when that fails."""
        from ..engine_process import EngineProcess
        from ..openvino.ir import remove
        from ..openvino.precision_audit import demand_types
        from ..parity import numpy_inputs

        made = super().make(source, precision, folder)
        try:
            # OpenVINO's compiler has crashed on sound graphs (2026.4.1), which must not end the whole run.
            with EngineProcess(self, made.file) as process:
                process.bind(numpy_inputs(source.data.example(1)))
            with self.open(made.file) as engine:
                demand_types(engine.graph(), precision)
        except ExportError:
            remove(made.file)
            raise
        return made

    def open(self, file: Path) -> "Engine":
        """A compiled model."""
        from ..openvino.engine import Engine

        return Engine(file, threads=self.threads)

    def files_of(self, file: Path) -> tuple[Path, ...]:
        """With the weights; the ONNX file that both were made of is not needed to run."""
        return (file, file.with_suffix(BIN)) if file.suffix == XML else (file,)

    def operator_times(self, file: Path, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """Medians over the calls of one profiled model."""
        from ..openvino.profile import operator_times

        return operator_times(file, inputs, threads=self.threads)

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """In 16 bits, how many layers are really computed so; with stored weights, that what they read is rounded."""
        from ..openvino.precision_audit import STORED_REMARK, half_remark

        if precision in (HALF, BF16):
            return (half_remark(*self._graphs(file), precision),)
        return (STORED_REMARK,) if precision in QUANTIZED and precision != INT8 else ()

    def audit(self, file: Path, precision: str) -> Audit | None:
        """Every layer's precision in the graph that OpenVINO executes; raises nothing where the share is low."""
        from ..openvino.precision_audit import audited

        if precision not in QUANTIZED:
            return None
        return audited(*self._graphs(file), cast(LayerType, precision), self.min_int8_share)

    def _graphs(self, file: Path) -> "tuple[ModelProto, RuntimeGraph]":
        """The graph that an engine was made of, and the one that is executed."""
        import onnx

        source = file.with_suffix(ONNX)
        if not source.is_file():
            raise ExportError(f"{file} has no {source.name} beside it, which names its layers; run again to build it")
        with self.open(file) as engine:
            graph = engine.graph()
        return onnx.load(source), graph  # pyright: ignore[reportUnknownMemberType] - its formats are untyped
