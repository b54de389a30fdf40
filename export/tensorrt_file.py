"""A model as the ONNX file that TensorRT is to be given, proven before any TensorRT is there."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from ..pipeline.artifact import Artifact
from ..pipeline.data import Dataset
from ..pipeline.files import write_atomically
from .codebooks import with_floats
from .dialects.tensorrt import for_tensorrt
from .dialects.tensorrt_rules import demand_placement
from .half import in_half
from .measurement import Parity
from .onnx_file import OnnxMetadata, exported
from .parity import demand_parity, parity_between
from .proof import Unoptimised, measured_ranges, proof_of, unrounded_activations
from .target import FLOAT, HALF, INT8

if TYPE_CHECKING:
    from onnx import ModelProto

Floats = Literal["fp32", "fp16", "bf16"]


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
        return _float_model(artifact, floats, data, metadata)
    from ..pipeline.fake_quantization import FakeQuantizedModel

    graph = exported(artifact, INT8, data.example(), metadata)
    form = for_tensorrt(graph)
    reference = cast(FakeQuantizedModel, artifact.executable(data.example()))
    unrounded = unrounded_activations(graph, form.model, reference)

    def proven(model: "ModelProto") -> Parity:
        return _demanded(proof_of(model, reference, artifact.model.eval(), data, unrounded), metadata)

    proof = proven(form.model)
    if floats == FLOAT:
        return TensorRTModel(form.model, unrounded, form.remarks, proof, None)
    half = in_half(form.model, floats, measured_ranges(form.model, data))
    demand_placement(half.model)
    in_half_too = proven(half.model) if floats == HALF else None
    return TensorRTModel(half.model, unrounded, (*form.remarks, *half.in_words()), proof, in_half_too)


def _float_model(artifact: Artifact, floats: Floats, data: Dataset, metadata: OnnxMetadata) -> TensorRTModel:
    graph = with_floats(exported(artifact, FLOAT, data.example(), metadata))
    whole = artifact.model.eval()

    def proven(model: "ModelProto", precision: str) -> Parity:
        return _demanded(parity_between(Unoptimised(model).run, whole, whole, data, precision), metadata)

    proof = proven(graph, FLOAT)
    if floats == FLOAT:
        return TensorRTModel(graph, (), (), proof, None)
    half = in_half(graph, floats, measured_ranges(graph, data))
    in_half_too = proven(half.model, HALF) if floats == HALF else None
    return TensorRTModel(half.model, (), half.in_words(), proof, in_half_too)


def _demanded(proof: Parity, metadata: OnnxMetadata) -> Parity:
    demand_parity(proof, f"{metadata.stage}, the graph for TensorRT")
    return proof
