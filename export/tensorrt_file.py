"""A model as the ONNX file that TensorRT is to be given, proven before any TensorRT is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..pipeline.artifact import Artifact
from ..pipeline.data import Dataset
from ..pipeline.files import write_atomically
from ..pipeline.quantization import Quantization
from .half import HalfModel, in_half
from .measurement import Parity
from .onnx_file import OnnxMetadata, exported
from .parity import demand_parity, parity_between
from .proof import Unoptimised, measured_ranges, proof_of
from .target import FLOAT, HALF, INT8
from .tensorrt_dialect import TensorRTForm, for_tensorrt
from .tensorrt_rules import demand_placement

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
    proof: Parity | None
    """How near the graph, run as it is written, comes to the model in PyTorch. None for bf16, for whose convolutions
    ONNX Runtime has no kernel; the same graph in fp32 was proven. What is fp16, ONNX Runtime computes in float32 on
    most processors: TensorRT's own sums are proven on its machine."""


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
    precision = FLOAT if artifact.quantization is None else INT8
    graph = exported(artifact, precision, data.example(), metadata)
    form = TensorRTForm(graph, (), ()) if artifact.quantization is None else for_tensorrt(graph)
    unrounded = () if artifact.quantization is None else unrounded_activations(form.model, artifact.quantization)
    proof = _proven(form.model, artifact, data, unrounded, FLOAT, metadata)
    if floats == "fp32":
        return TensorRTModel(form.model, unrounded, form.remarks, proof)
    half = in_half(form.model, floats, measured_ranges(form.model, data))
    demand_placement(half.model)
    if floats == "fp16":
        proof = _proven(half.model, artifact, data, unrounded, HALF, metadata)
    return TensorRTModel(
        half.model, unrounded, (*form.remarks, *kept_in_words(half)), proof if floats == "fp16" else None
    )


def unrounded_activations(model: "ModelProto", quantization: Quantization) -> tuple[str, ...]:
    """The quantized activations on whose grid nothing lies in the graph any more; its float part is in fp32."""
    import onnx

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantizers = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    left = {float(onnx.numpy_helper.to_array(constants[node.input[1]])) for node in quantizers}
    return tuple(name for name, grid in quantization.activations.items() if grid.scale not in left)


def kept_in_words(half: HalfModel) -> tuple[str, ...]:
    """Which operators stay in float32, one sentence a reason."""
    by_reason: dict[str, list[str]] = {}
    for each in half.kept:
        by_reason.setdefault(each.reason, []).append(each.node)
    return tuple(f"in float32: {', '.join(nodes)}: {reason}" for reason, nodes in by_reason.items())


def _proven(
    model: "ModelProto",
    artifact: Artifact,
    data: Dataset,
    unrounded: Sequence[str],
    precision: str,
    metadata: OnnxMetadata,
) -> Parity:
    if artifact.quantization is None:
        whole = artifact.model.eval()
        proof = parity_between(Unoptimised(model).run, whole, whole, data, precision)
    else:
        proof = proof_of(model, artifact, data, unrounded)
    demand_parity(proof, f"{metadata.stage}, the graph for TensorRT")
    return proof
