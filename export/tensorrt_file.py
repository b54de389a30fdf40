"""A model as the ONNX file that TensorRT is to be given, proven before any TensorRT is there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from torch import nn

from ..pipeline.artifact import Artifact
from ..pipeline.data import Dataset
from ..pipeline.errors import ExportError
from ..pipeline.files import write_atomically
from .codebooks import with_floats
from .dialects.tensorrt import for_tensorrt
from .dialects.tensorrt_rules import demand_placement
from .engine import Array
from .half import in_half
from .measurement import Parity
from .onnx_file import OnnxMetadata, exported
from .parity import demand_parity, parity_between
from .proof import Unoptimised, measured_ranges, proof_of, unrounded_activations
from .target import FLOAT, FP8, HALF, INT8
from .tensorrt.e4m3 import in_e4m3, left_in_float, original_weights, without_kernels

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..pipeline.fake_quantization import FakeQuantizedModel

Floats = Literal["fp32", "fp16", "bf16"]
Codes = Literal["int8", "fp8"]


@dataclass(frozen=True)
class TensorRTModel:
    """A graph with types written out, as TensorRT's strongly typed networks take it."""

    model: "ModelProto"
    unrounded: tuple[str, ...]
    """Quantized activations whose rounding is left out, so that kernels fuse; by the names of `Quantization`."""
    remarks: tuple[str, ...]
    """Operators that stay in float32 and why, and what will cost time."""
    proof: Parity
    """How near the graph with a float part in fp32, run as it is written, comes to the model in PyTorch."""
    proof_in_half: Parity | None
    """The same of the graph in fp16. ONNX Runtime computes that in float32 on most processors, between constants of 16
    bits; TensorRT's own sums are to be compared on its machine. None for fp32, and for bf16, which it cannot run."""
    reference: nn.Module = field(repr=False)
    """What the graph computes, in PyTorch: the model, with the roundings of the graph and no others."""


def write_tensorrt_onnx(
    artifact: Artifact, floats: Floats, file: Path, data: Dataset, *, metadata: OnnxMetadata
) -> TensorRTModel:
    """Write the artifact, in int8 where it is quantized, for ``trtexec --onnx=file`` or TensorRT's ONNX parser.

    What is not in int8 is of the type `floats`. Raises ExportError where the grids are not symmetric or TensorRT's
    rules are broken, ParityError where the graph computes something else than the model.
    """
    made = tensorrt_model(artifact, floats, data, metadata)
    write_atomically(file, made.model.SerializeToString(deterministic=True))
    return made


def tensorrt_model(artifact: Artifact, floats: Floats, data: Dataset, metadata: OnnxMetadata) -> TensorRTModel:
    """The artifact as a graph for TensorRT; `write_tensorrt_onnx` says what is raised."""
    if artifact.quantization is None:
        return float_model(artifact, floats, data, metadata)
    return quantized_model(artifact, "int8", floats, data, metadata)


def float_model(artifact: Artifact, floats: Floats, data: Dataset, metadata: OnnxMetadata) -> TensorRTModel:
    """The artifact without any quantizers, also where it is quantized."""
    graph = with_floats(exported(artifact, FLOAT, data.example(), metadata))
    whole = artifact.model.eval()

    def proven(model: "ModelProto", precision: str) -> Parity:
        return _demanded(parity_between(Unoptimised(model).run, whole, whole, data, precision), metadata)

    proof = proven(graph, FLOAT)
    if floats == FLOAT:
        return TensorRTModel(graph, (), (), proof, None, whole)
    half = in_half(graph, floats, measured_ranges(graph, data))
    in_half_too = proven(half.model, HALF) if floats == HALF else None
    return TensorRTModel(half.model, (), half.in_words(), proof, in_half_too, whole)


def quantized_model(
    artifact: Artifact, codes: Codes, floats: Floats, data: Dataset, metadata: OnnxMetadata
) -> TensorRTModel:
    """The artifact with the codes of int8, or with those of fp8 over the same ranges, where its quantizers are.

    Raises ExportError also where the artifact has no int8 grids.
    """
    form = _quantized_form(artifact, codes, data, metadata)

    def proven(model: "ModelProto", *, in_half: bool) -> Parity:
        whole = artifact.model.eval()
        return _demanded(proof_of(model, form.reference, whole, data, form.unrounded, in_half=in_half), metadata)

    made, in_half_too, words = form.model, None, tuple[str, ...]()
    proof = proven(form.model, in_half=False)
    if floats != FLOAT:
        half = in_half(form.model, floats, measured_ranges(form.model, data))
        made, words = half.model, half.in_words()
        demand_placement(made)
        in_half_too = proven(made, in_half=True) if floats == HALF else None
    form.reference.stop_rounding(form.unrounded)
    return TensorRTModel(made, form.activations, (*form.remarks, *words), proof, in_half_too, form.reference)


@dataclass(frozen=True)
class _QuantizedForm:
    """The graph with a float part in fp32, and what it is to be compared with."""

    model: "ModelProto"
    reference: "FakeQuantizedModel"
    activations: tuple[str, ...]
    weights: tuple[str, ...]
    """Those that are left in float, like `activations` by the names of `Quantization`."""
    remarks: tuple[str, ...]

    @property
    def unrounded(self) -> tuple[str, ...]:
        """All that is rounded in the artifact and not in the graph."""
        return (*self.activations, *self.weights)


def _quantized_form(artifact: Artifact, codes: Codes, data: Dataset, metadata: OnnxMetadata) -> _QuantizedForm:
    if artifact.quantization is None or artifact.quantization.scheme != INT8:
        raise ExportError(
            f"{codes} was asked of a model without int8 grids: add a quantize stage with `scheme: int8` and "
            f"`grids: symmetric` before this step, or take {codes} out of the target's precision"
        )
    from ..pipeline.fake_quantization import FakeQuantizedModel

    graph = exported(artifact, INT8, data.example(), metadata)
    reference = cast(FakeQuantizedModel, artifact.executable(data.example()))
    if codes == INT8:
        form = for_tensorrt(graph)
        return _QuantizedForm(
            form.model, reference, unrounded_activations(graph, form.model, reference), (), form.remarks
        )
    from .tensorrt.e4m3_reference import turn_to_e4m3

    largest_code = 2 ** (artifact.quantization.weight_bits - 1) - 1
    weights = original_weights(graph, _quantized_parameters(reference), largest_code)
    floats = without_kernels(graph)
    kept = left_in_float(graph, floats, weights)
    form = for_tensorrt(graph)
    unrounded = unrounded_activations(graph, form.model, reference)
    turn_to_e4m3(reference)
    remarks = (*form.remarks, *_told(floats))
    return _QuantizedForm(in_e4m3(form.model, weights), reference, unrounded, kept, remarks)


def _quantized_parameters(reference: "FakeQuantizedModel") -> dict[str, Array]:
    state = reference.float_state()
    return {name: state[name].detach().numpy() for name in reference.weights()}


def _told(floats: Mapping[str, str]) -> tuple[str, ...]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in floats.items():
        by_reason.setdefault(reason, []).append(name)
    return tuple(f"not in {FP8}: {', '.join(names)} ({reason})" for reason, names in by_reason.items())


def _demanded(proof: Parity, metadata: OnnxMetadata) -> Parity:
    demand_parity(proof, f"{metadata.stage}, the graph for TensorRT")
    return proof
