"""Which layers of a graph TensorRT really runs in the precision that was asked for, by what the inspector tells."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..audit import RECURRENT, WeightedLayer, weighted_layers
from ..measurement import Audit, LayerPrecision, LayerType
from .inspection import COMPUTED, EngineLayer, engine_layers, standing_for, widest

if TYPE_CHECKING:
    from onnx import ModelProto

AUDITED = ("fp16", "bf16", "int8", "fp8")


def audited(model: "ModelProto", information: str, precision: str, min_share: float) -> Audit:
    """Compare the graph that TensorRT was given with the inspector's JSON of the engine that it made.

    What cannot be found in the engine counts as float. Raises ExportError where the JSON has no details.
    """
    asked, layers = COMPUTED[precision], engine_layers(information)
    found = tuple(_precision(layer, asked, standing_for(layer.node.name, layers)) for layer in weighted_layers(model))
    total = sum(layer.macs for layer in found)
    share = sum(layer.macs for layer in found if layer.precision == asked) / total if total else 0.0
    return Audit(layers=found, precision=asked, int8_share=share, min_int8_share=min_share)


def _precision(layer: WeightedLayer, asked: LayerType, run_by: Sequence[EngineLayer]) -> LayerPrecision:
    # One that tells no type may be in float.
    precision = widest(each.computes_in or "float" for each in run_by) or "float"
    kinds = ", ".join(sorted({each.kind for each in run_by}))
    recurrent = layer.node.op_type in RECURRENT
    quantized = asked in ("int8", "fp8")
    return LayerPrecision(
        name=layer.path,
        kind=layer.node.op_type,
        precision=precision,
        macs=layer.macs,
        reason=f"runs as {kinds}" if precision == asked else _why(layer, asked, precision, run_by),
        on_purpose=precision != asked and recurrent and quantized,
    )


def _why(layer: WeightedLayer, asked: LayerType, precision: LayerType, run_by: Sequence[EngineLayer]) -> str:
    import onnx

    if not run_by:
        return "no layer of the engine names it, so it counts as float"
    codes = {"int8": (onnx.TensorProto.INT8,), "fp8": (onnx.TensorProto.FLOAT8E4M3FN,)}
    if asked in codes and layer.weight_type not in codes[asked]:
        return f"its weight is not in {asked} in the graph that TensorRT was given; the remarks may say why"
    if asked not in codes and layer.weight_type == onnx.TensorProto.FLOAT:
        return "the graph that TensorRT was given has it in float32; the remarks say why"
    first = run_by[0]
    reads = f"reads {', '.join(first.inputs) or 'nothing that it tells'}"
    stored = "" if first.weights is None else f", with weights in {first.weights}"
    return f"TensorRT computes it in {precision}, as {first.kind}, which {reads}{stored}"
