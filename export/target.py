"""Where a model is to run, as a recipe says it: a runtime, a device, precisions and batch sizes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, Field, JsonValue, field_validator

from ..pipeline.registry import discovered
from .measurement import Audit, OperatorTime
from .scenarios import OfflineScenario, ServerScenario, batch_sizes

if TYPE_CHECKING:  # the process that runs an engine reads this module, and imports no torch
    from onnx import ModelProto
    from torch import nn

    from ..pipeline.artifact import Artifact
    from ..pipeline.data import Dataset
    from .engine import Array, Engine
    from .onnx_file import OnnxMetadata

FLOAT, HALF, BF16, INT8, FP8 = "fp32", "fp16", "bf16", "int8", "fp8"
QUANTIZED = frozenset({INT8, "int8_weights", "int4_weights"})
"""The precisions that a `quantize` stage makes, each the name of a scheme; others are made of any model."""


def scheme_of(precision: str) -> str | None:
    """The scheme of the `quantize` stage that a precision is made of; None for those that are made of any model.

    fp8 takes its ranges from the grids of int8.
    """
    return INT8 if precision == FP8 else precision if precision in QUANTIZED else None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an engine is built from."""

    artifact: "Artifact"
    data: "Dataset"
    """Gives the example batch, and the samples by which ranges and proofs are measured."""
    metadata: "OnnxMetadata"


@dataclass(frozen=True)
class Made:
    """What `Target.make` left in its folder."""

    file: Path
    """That `Target.open` takes."""
    remarks: tuple[str, ...] = ()
    """What is not as the precision's name says, such as operators that stay in float32."""
    reference: "nn.Module | None" = field(default=None, repr=False)
    """What the engine computes, in PyTorch, where that is not what `Artifact.executable` does."""
    compared_as: str | None = None
    """The precision whose rule of parity holds, where that is not the one asked for."""
    in_half: bool = False
    """Whether what a quantized engine leaves in float is in 16 bits."""


class Target(BaseModel, ABC, frozen=True, extra="forbid"):
    """One entry of `targets:`. A subclass in a module of `runtimes/` needs no registration."""

    suffixes: ClassVar[tuple[str, ...]]
    """The endings of the files that `open` takes, that of the runtime's own format first."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What pip knows the runtime by."""

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
    offline: OfflineScenario | None = None
    """Measures the throughput of the teacher's and the final engines at the best batch size."""
    server: ServerScenario | None = None
    """Likewise the highest rate of queries whose latency meets a bound."""

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

    def scenario_settings(self) -> dict[str, JsonValue]:
        """The settings that the offline and the server scenario depend on; empty where neither is asked for."""
        if self.offline is None and self.server is None:
            return {}
        return self.model_dump(mode="json", include={"runtime", "device", "threads", "offline", "server"})

    @property
    def all_batches(self) -> tuple[int, ...]:
        """Every batch size that an engine has to take, rising: of latency and of the scenarios."""
        sizes = {*self.batch}
        if self.offline is not None:
            sizes.update(batch_sizes(self.offline.max_batch))
        if self.server is not None:
            sizes.update(batch_sizes(self.server.max_batch))
        return tuple(sorted(sizes))

    @classmethod
    def installed(cls) -> tuple[str, ...]:
        """Which of its packages are installed, with their versions, such as ``openvino 2026.4.1``."""
        return tuple(f"{package} {number}" for package, number in versions(cls.packages).items())

    @abstractmethod
    def check(self) -> None:
        """Raise MissingDependency when the runtime is not installed, ExportError when its device is not there."""

    @abstractmethod
    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Build the engine of an artifact in `folder`; ExportError when the runtime refuses it."""

    @abstractmethod
    def open(self, file: Path) -> "Engine":
        """The engine in a file that `make` left, not yet entered."""

    def files_of(self, file: Path) -> tuple[Path, ...]:
        """The engine's file, and those beside it that it cannot be opened without."""
        return (file,)

    @abstractmethod
    def operator_times(self, file: Path, inputs: "Mapping[str, Array]") -> tuple[OperatorTime, ...]:
        """How long every operator of the graph that the runtime really runs takes, by its own profile."""

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """What the precision alone would not tell of the engine that the runtime makes of the file."""
        return ()

    def audit(self, file: Path, precision: str) -> Audit | None:
        """Every layer's precision in the graph that the runtime really runs; None where there is nothing to audit."""
        return None


class OnnxTarget(Target, ABC, frozen=True, extra="forbid"):
    """A target whose engines are built from ONNX graphs, those of single layers and parts of models among them."""

    def graph(self, source: Source, precision: str) -> "tuple[ModelProto, tuple[str, ...]]":
        """The artifact as `build` takes it, and what of it is not in the precision that was asked for."""
        from .codebooks import with_floats
        from .half import in_half
        from .onnx_file import exported
        from .proof import measured_ranges

        model = exported(source.artifact, precision, source.data.example(), source.metadata)
        if precision != HALF and precision != BF16:
            return model, ()
        model = with_floats(model)
        half = in_half(model, precision, measured_ranges(model, source.data))
        return half.model, half.in_words()

    @abstractmethod
    def build(self, model: "ModelProto", precision: str, folder: Path) -> Path:
        """Write the engine's file for an exported model into `folder`; ExportError when the runtime refuses it."""

    def from_file(self, file: Path, folder: Path) -> Path:
        """The engine of an ONNX file that someone else made, as it is: the file itself, or built into `folder`."""
        return file

    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Export the artifact and build its engine."""
        model, remarks = self.graph(source, precision)
        return Made(self.build(model, precision, folder), remarks)


@dataclass(frozen=True)
class EngineFile:
    """An engine's file and the target that opens it."""

    target: Target
    path: Path

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(file.stat().st_size for file in self.target.files_of(self.path))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed, as pip knows them."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def targets() -> dict[str, type[Target]]:
    """Every target by its runtime's name in a recipe."""
    return discovered(f"{__package__}.runtimes", Target, "runtime")
