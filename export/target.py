"""Where a model is to run, as a recipe says it: a runtime, a device, precisions and batch sizes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field, JsonValue, field_validator

from ..pipeline.registry import discovered
from .measurement import Audit, OperatorTime

if TYPE_CHECKING:
    from onnx import ModelProto

    from .engine import Array, Engine

FLOAT, HALF, INT8 = "fp32", "fp16", "int8"
QUANTIZED = frozenset({INT8, "int8_weights", "int4_weights"})
"""The precisions that a `quantize` stage makes, each the name of a scheme; others are made of any model."""


class Target(BaseModel, ABC, frozen=True, extra="forbid"):
    """One entry of `targets:`. A subclass in a module of `runtimes/` needs no registration."""

    runtime: str
    device: str
    precision: tuple[str, ...]
    """The engines that the last step gets, one each; others than fp32 only where the model is quantized so."""
    batch: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(min_length=1)] = (1,)
    """The batch sizes that latency is measured at; goals look at the first."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads inside one call of the engine."""
    min_int8_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """The share of all multiply-accumulates that a quantized engine must run in int8, or by weights in few bits."""

    @field_validator("precision", "batch")
    @classmethod
    def _nothing_twice(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) != len(values):
            raise ValueError("lists something twice")
        return values

    @property
    def label(self) -> str:
        """For people, such as ``onnxruntime cpu`` or ``onnxruntime cpu 4 threads``."""
        return f"{self.runtime} {self.device}" + (f" {self.threads} threads" if self.threads > 1 else "")

    @property
    def slug(self) -> str:
        """For folders: the label with hyphens."""
        return self.label.replace(" ", "-")

    def build_settings(self) -> dict[str, JsonValue]:
        """The settings that an engine's file, or its acceptance, depends on."""
        return self.model_dump(mode="json", include={"runtime", "device", "min_int8_share"})

    def measure_settings(self) -> dict[str, JsonValue]:
        """The settings that an engine's numbers depend on."""
        return self.model_dump(mode="json", include={"runtime", "device", "batch", "threads"})

    @abstractmethod
    def check(self) -> None:
        """Raise MissingDependency when the runtime is not installed, ExportError when its device is not there."""

    @abstractmethod
    def build(self, model: "ModelProto", precision: str, folder: Path) -> Path:
        """Write the engine's file for an exported model into `folder`; ExportError when the runtime refuses it."""

    @abstractmethod
    def open(self, file: Path) -> "Engine":
        """The engine in a file that `build` wrote, not yet entered."""

    @abstractmethod
    def operator_times(self, file: Path, inputs: "Mapping[str, Array]") -> tuple[OperatorTime, ...]:
        """How long every operator of the graph that the runtime really runs takes, by its own profile."""

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """What the precision alone would not tell of the engine that the runtime makes of the file."""
        return ()

    @abstractmethod
    def audit(self, file: Path) -> Audit:
        """Every layer's precision in the graph that the runtime really runs."""


def targets() -> dict[str, type[Target]]:
    """Every target by its runtime's name in a recipe."""
    return discovered(f"{__package__}.runtimes", Target, "runtime")
