"""Eager PyTorch: the reference that every other runtime is compared with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from ...pipeline.errors import ExportError, PotstillError
from ..engine import Array
from ..measurement import OperatorTime
from ..target import HALF, Made, Source, Target

if TYPE_CHECKING:  # torch takes seconds to import, and this module is imported to list the runtimes
    from torch import nn

    from ..torch_engine import TorchEngine
    from ..torch_program import Program, Signature

FILE, BLUEPRINT = "model.safetensors", "blueprint.json"
METADATA = "potstill.engine"
"""Where the header of the .safetensors file says what the engine takes and gives."""

SLOW_HALF = (
    "PyTorch computes fp16 on CPUs with few kernels of its own: it halves the weights, and is mostly slower than fp32"
)


def _no_quantized(value: object) -> object:
    if isinstance(value, str) and value.startswith("int"):
        raise ValueError(
            f"{value} cannot run: eager PyTorch computes a quantized model in float32 and rounds in between, "
            "which is no integer engine; allowed: fp32, fp16, bf16"
        )
    return value


Precision = Annotated[Literal["fp32", "fp16", "bf16"], BeforeValidator(_no_quantized)]


class PyTorchTarget(Target, frozen=True, extra="forbid"):
    """The float model rebuilt from its blueprint and run as it is, operator by operator; opening it takes potstill."""

    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    runtime: Literal["pytorch"] = "pytorch"
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)
    channels_last: bool = False
    """Convolutions' weights, and so all maps, in the order (B, H, W, C). Off as code that calls `view` on maps then
    fails; on a CPU it made ResNets up to 1.2 times as fast in fp32, and 1.4 to 2.1 times in bf16."""
    cuda_graph: bool = False
    """On CUDA: time a recording of all kernels, which the host starts at once, instead of one after the other."""

    @model_validator(mode="after")
    def _only_what_the_device_knows(self) -> Self:
        if self.device == "cpu" and self.cuda_graph:
            raise ValueError("only `device: cuda` knows cuda_graph")
        return self

    @property
    def label(self) -> str:
        """Such as ``pytorch cuda nhwc graphed``: what changes an engine's numbers tells targets apart."""
        return super().label + (" nhwc" if self.channels_last else "") + (" graphed" if self.cuda_graph else "")

    def measure_settings(self) -> dict[str, JsonValue]:
        """With how the model is laid out and started."""
        own: dict[str, JsonValue] = {"channels_last": self.channels_last, "cuda_graph": self.cuda_graph}
        return super().measure_settings() | own

    def check(self) -> None:
        """Raise ExportError when PyTorch cannot use the device, or the device has not one of the precisions."""
        from ..torch_engine import demand_device, demand_precision

        demand_device(self.runtime, self.device)
        demand_precision(self.runtime, self.device, self.precision)

    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Save the artifact with weights of the precision, and run it once on the device."""
        from ..onnx_file import OUTPUT
        from ..torch_engine import demand_device, demand_precision
        from ..torch_program import DTYPES, InPrecision, Signature

        if precision not in DTYPES:
            raise ExportError(
                f"{self.label} has no {precision} engines: PyTorch computes a model under fake quantizers in float32; "
                f"take {precision} out, or name another target for it"
            )
        demand_device(self.runtime, self.device)
        demand_precision(self.runtime, self.device, (precision,))
        example = source.data.example()
        # The quantizers are not part of a float engine, as in the ONNX files of other runtimes.
        artifact = replace(source.artifact, quantization=None)
        artifact.save(folder, example)
        signature = Signature.of(InPrecision(artifact.model, "fp32"), example, precision, OUTPUT)
        _save_weights(artifact.model, signature, folder / FILE)
        with self.open(folder / FILE) as engine:
            engine.run({name: tensor.numpy() for name, tensor in example.items()})
        return Made(folder / FILE)

    def open(self, file: Path) -> "TorchEngine":
        """The model of an artifact's folder."""
        from ..torch_engine import TorchEngine

        return TorchEngine(
            file, lambda: self._program(file), device=self.device, threads=self.threads, cuda_graph=self.cuda_graph
        )

    def files_of(self, file: Path) -> tuple[Path, ...]:
        """The weights, and the blueprint that says what network they belong to."""
        return (file, file.with_name(BLUEPRINT))

    def operator_times(self, file: Path, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """Every call of an operator by the module that makes it, of one profile."""
        with self.open(file) as engine:
            return engine.operator_times(inputs)

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """What fp16 is worth on a CPU."""
        return (SLOW_HALF,) if precision == HALF and self.device == "cpu" else ()

    def _program(self, file: Path) -> "Program":
        from ...pipeline.sharing import plain
        from ..torch_engine import demand_precision
        from ..torch_program import InPrecision, Program, operators_called

        signature = _signature(file)
        demand_precision(self.runtime, self.device, (signature.precision,))
        model = InPrecision(plain(_model(file)), signature.precision, channels_last=self.channels_last)
        model.to(self.device)
        return Program(
            signature, lambda inputs: model(*inputs), lambda inputs: operators_called(model, inputs), model.model
        )


def _save_weights(model: "nn.Module", signature: "Signature", file: Path) -> None:
    """Write the weights in the engine's precision, with the signature in the file's header."""
    import torch
    from safetensors.torch import save

    from ...pipeline.files import write_atomically
    from ..torch_program import DTYPES

    dtype = DTYPES[signature.precision]
    state = {
        name: tensor.detach()
        .to(dtype if tensor.is_floating_point() else tensor.dtype)
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    write_atomically(file, save(state, metadata={METADATA: signature.model_dump_json()}))


def _signature(file: Path) -> "Signature":
    """From the header of the weights' file."""
    from safetensors import SafetensorError, safe_open

    from ..torch_program import Signature

    if not file.is_file():
        raise ExportError(f"there is no engine file {file}; run again to build it")
    if file.name != FILE:
        raise ExportError(
            f"{file}: an engine for eager PyTorch is a folder with {FILE} and {BLUEPRINT}; name it {FILE}"
        )
    try:
        with cast(Any, safe_open)(file, framework="pt") as weights:
            metadata = cast(dict[str, str] | None, weights.metadata()) or {}
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{file} is damaged, or is no .safetensors file: {error}\nMend: remove it and run again."
        ) from error
    if METADATA not in metadata:
        raise ExportError(
            f"{file} does not say what the engine takes and in which precision it runs: it holds weights, "
            "but was not built for the target pytorch"
        )
    try:
        return Signature.model_validate_json(metadata[METADATA])
    except ValueError as error:
        raise ExportError(
            f"{file} was written by another version of potstill: {error}\nMend: `potstill run` builds it again."
        ) from error


def _model(file: Path) -> "nn.Module":
    from ...pipeline.artifact import Artifact

    blueprint = file.with_name(BLUEPRINT)
    if not blueprint.is_file():
        raise ExportError(f"{blueprint} is missing, without which nobody knows what network the weights belong to")
    try:
        return Artifact.load(file.parent).model
    except (PotstillError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{file} cannot be opened: {error}\nMend: remove its folder and run again.") from error
