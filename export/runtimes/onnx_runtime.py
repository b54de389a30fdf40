"""ONNX Runtime on the CPU, and by its CUDA or TensorRT provider on NVIDIA's GPUs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from ...pipeline.errors import PotstillError
from ..engine import Array
from ..measurement import Audit, OperatorTime
from ..onnx_sessions.engine import FILE, Engine, optimized
from ..onnx_sessions.profile import operator_times
from ..onnx_sessions.session import SessionSettings, loaded, onnxruntime, tensorrt_options, wheel
from ..target import BF16, FLOAT, HALF, INT8, QUANTIZED, Made, OnnxTarget, Source, versions

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["FILE", "Engine", "OnnxRuntimeTarget", "build", "operator_times", "optimized"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8_weights", "int4_weights"]

ONLY_ON_CUDA = ("provider", "tf32", "cuda_graph", "prefer_nhwc", "cudnn_conv_algo_search")
"""Settings that mean nothing on the CPU."""

NO_INT8 = "ONNX Runtime's CUDA provider has no int8 kernel for it: it turns codes back into floats and multiplies those"


class OnnxRuntimeTarget(OnnxTarget, frozen=True, extra="forbid"):
    """ONNX Runtime, one engine file being a plain ONNX model that any program may load."""

    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnxruntime-gpu")
    runtime: Literal["onnxruntime"] = "onnxruntime"
    device: Literal["cpu", "cuda"] = "cpu"
    provider: Literal["cuda", "tensorrt"] = "cuda"
    """What runs the graph on `device: cuda`; what TensorRT's provider leaves, CUDA's runs."""
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)
    tf32: bool = False
    """On CUDA: whether fp32 may be multiplied with the ten binary digits of TF32, which is faster."""
    cuda_graph: bool = True
    """On CUDA: capture the run as one launch, where the whole model runs there."""
    prefer_nhwc: bool = False
    """On CUDA: lay images out with their channels last, as Tensor Cores read them."""
    cudnn_conv_algo_search: Literal["exhaustive", "heuristic", "default"] = "exhaustive"
    """On CUDA: how cuDNN chooses its kernels for convolutions."""

    @field_validator("precision")
    @classmethod
    def _with_kernels(cls, values: tuple[Precision, ...], info: ValidationInfo) -> tuple[Precision, ...]:
        if BF16 in values and info.data.get("device") == "cpu":
            raise ValueError(
                "bf16 cannot run: ONNX Runtime's CPU has no bfloat16 kernels, not even for convolutions; "
                "allowed: fp32, fp16, int8, int8_weights, int4_weights"
            )
        return values

    @model_validator(mode="after")
    def _only_what_the_device_knows(self) -> Self:
        unable = sorted({*self.precision} - {FLOAT, HALF, INT8})
        if unable and self.provider == "tensorrt":
            raise ValueError(f"{', '.join(unable)} cannot run by `provider: tensorrt`; allowed: fp32, fp16, int8")
        fields = type(self).model_fields
        given = [name for name in ONLY_ON_CUDA if getattr(self, name) != fields[name].default]
        if self.device == "cpu" and given:
            raise ValueError(f"only `device: cuda` knows {', '.join(given)}")
        return self

    @property
    def label(self) -> str:
        """Such as ``onnxruntime cuda tf32``: what changes an engine's numbers tells targets apart."""
        return " ".join(
            [
                super().label,
                *(["tensorrt"] if self.provider == "tensorrt" else []),
                *(["tf32"] if self.tf32 else []),
                *(["nhwc"] if self.prefer_nhwc else []),
                *([] if self.cuda_graph else ["ungraphed"]),
            ]
        )

    def build_settings(self) -> dict[str, JsonValue]:
        """Those of all targets, and on CUDA how a session is made, by which an engine is accepted."""
        return super().build_settings() | self._cuda_settings()

    def measure_settings(self) -> dict[str, JsonValue]:
        """Likewise."""
        return super().measure_settings() | self._cuda_settings()

    def _cuda_settings(self) -> dict[str, JsonValue]:
        return self.model_dump(mode="json", include=set(ONLY_ON_CUDA)) if self.device == "cuda" else {}

    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Export the artifact and build its engine; in TF32, which has as many digits, it is compared as fp16 is."""
        made = super().make(source, precision, folder)
        return replace(made, compared_as=HALF) if self.tf32 and precision == FLOAT else made

    @classmethod
    def installed(cls) -> tuple[str, ...]:
        """Of two packages for one folder, first the one whose files are there, and how to tell them apart again."""
        found = versions(cls.packages)
        try:
            name, number = wheel()
        except PotstillError:
            return super().installed()
        if len(found) < 2:
            return super().installed()
        others = ", ".join(f"{package} {each}" for package, each in found.items() if package != name)
        return (
            f"{name} {number} is what runs",
            f"{others} is installed into the same folder, too: pip uninstall {' '.join(found)}, then install one",
        )

    def check(self) -> None:
        """Raise MissingDependency when ONNX Runtime or what its provider needs is not installed."""
        if self.device == "cpu":
            onnxruntime()
            return
        from ..onnx_sessions.cuda import demand_cuda

        demand_cuda(self.provider)

    def settings_of(self, file: Path) -> SessionSettings:
        """How sessions on an engine's file are opened."""
        if self.device == "cpu":
            return SessionSettings(threads=self.threads)
        options = {
            "device_id": "0",
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.prefer_nhwc)),
            "cudnn_conv_algo_search": self.cudnn_conv_algo_search.upper(),
            # Copies then stay in order with what a torch program does on the default stream.
            "do_copy_in_default_stream": "1",
        }
        if self.provider == "tensorrt":
            options |= tensorrt_options(file)
        return SessionSettings(provider=self.provider, threads=self.threads, options=options)

    def build(self, model: "ModelProto", precision: str, folder: Path) -> Path:
        """Write ``model.onnx`` in the dialect of the provider and load it once."""
        if self.device == "cpu":
            return build(model, folder)
        return _written(self._in_dialect(model, precision), folder, self)

    def _in_dialect(self, model: "ModelProto", precision: str) -> "ModelProto":
        from ..dialects import for_onnxruntime_cuda

        if self.provider == "tensorrt" and precision == INT8:
            from ..dialects.tensorrt import for_tensorrt

            return for_tensorrt(model).model
        return for_onnxruntime_cuda(model)

    def open(self, file: Path) -> Engine:
        """A session on one model file."""
        if self.device == "cpu":
            return Engine(file, self.settings_of(file))
        from ..onnx_sessions.cuda_engine import CudaEngine

        return CudaEngine(file, self.settings_of(file), cuda_graph=self.cuda_graph)

    def operator_times(self, file: Path, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """Medians over the calls of one profiled session."""
        if self.device == "cpu":
            return operator_times(file, inputs, self.settings_of(file))
        from ..onnx_sessions.cuda_profile import operator_times_on_cuda

        return operator_times_on_cuda(self, file, inputs)

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """How many layers of a 16-bit graph are computed so; on CUDA, what is left to the CPU or to floats."""
        from ..audit import half_remark

        found: list[str] = []
        if precision in (HALF, BF16):
            found.append(half_remark(loaded(file), optimized(file, self.settings_of(file)), precision))
        return (*found, *self._cuda_remarks(file, precision)) if self.device == "cuda" else tuple(found)

    def _cuda_remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        from ..onnx_sessions.cuda_engine import CudaEngine

        with CudaEngine(file, self.settings_of(file), cuda_graph=self.cuda_graph) as engine:
            notes = engine.notes()
        audit = self.audit(file, precision) if precision == INT8 and self.provider == "cuda" else None
        if audit is None:
            return notes
        return (*notes, f"{audit.int8_share:.0%} of its multiply-accumulates run in int8: {NO_INT8}")

    def audit(self, file: Path, precision: str) -> Audit | None:
        """Every layer's precision after ONNX Runtime's own optimisation; raises nothing where the share is low.

        None for TensorRT's provider, which does not show what it makes of its part of the graph.
        """
        from ..audit import audited, with_reason

        if precision not in QUANTIZED or (self.device == "cuda" and self.provider == "tensorrt"):
            return None
        found = audited(loaded(file), optimized(file, self.settings_of(file)), self.min_int8_share)
        return with_reason(found, NO_INT8) if self.device == "cuda" and precision == INT8 else found


def build(model: "ModelProto", folder: Path) -> Path:
    """Write an exported model in the dialect for the CPU; raises ExportError when ONNX Runtime does not load it."""
    from ..dialects import for_onnxruntime_cpu

    return _written(for_onnxruntime_cpu(model), folder, OnnxRuntimeTarget())


def _written(model: "ModelProto", folder: Path, target: OnnxRuntimeTarget) -> Path:
    from ..onnx_file import check

    check(model)
    file = folder / FILE
    file.write_bytes(model.SerializeToString(deterministic=True))
    try:
        with target.open(file):
            return file
    except PotstillError:
        file.unlink()
        raise
