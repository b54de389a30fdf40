"""Which layers OpenVINO really runs in int8, by weights in few bits or in 16 bits, by the graph that it executes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...pipeline.errors import ExportError
from ..audit import RECURRENT, WeightedLayer, weighted_layers
from ..measurement import Audit, LayerPrecision, LayerType
from ..target import INT8
from .runtime_graph import RuntimeGraph, RuntimeOperator
from .session import ROUNDED_AT_ONCE

if TYPE_CHECKING:
    from onnx import ModelProto

WHY_RECURRENT = "recurrent layers are exported in float; `min_int8_share` is asked of the others"
HALF_TYPES = {"fp16": "f16", "bf16": "bf16"}
"""OpenVINO's words for them."""


def audited(model: "ModelProto", graph: RuntimeGraph, precision: LayerType, min_share: float) -> Audit:
    """Compare the graph that OpenVINO was given with the one that it executes; what cannot be found counts as float."""
    is_so: Callable[[RuntimeOperator], bool] = (
        (lambda kernel: kernel.is_int8) if precision == INT8 else (lambda kernel: kernel.has_stored_weight)
    )
    layers = tuple(
        _precision(layer, graph.computing(layer.node.name), precision, is_so) for layer in weighted_layers(model)
    )
    total = sum(layer.macs for layer in layers)
    share = sum(layer.macs for layer in layers if layer.precision == precision) / total if total else 0.0
    return Audit(layers=layers, precision=precision, int8_share=share, min_int8_share=min_share)


def _precision(
    layer: WeightedLayer,
    kernel: RuntimeOperator | None,
    asked: LayerType,
    is_so: Callable[[RuntimeOperator], bool],
) -> LayerPrecision:
    quantized = kernel is not None and is_so(kernel)
    recurrent = layer.node.op_type in RECURRENT
    return LayerPrecision(
        name=layer.path,
        kind=layer.node.op_type,
        precision=asked if quantized else "float",
        macs=layer.macs,
        reason=f"runs as {kernel}" if quantized else WHY_RECURRENT if recurrent else _why_float(layer, kernel, asked),
        on_purpose=not quantized and (recurrent or (asked != INT8 and not layer.in_groups)),
    )


def _why_float(layer: WeightedLayer, kernel: RuntimeOperator | None, asked: LayerType) -> str:
    if asked != INT8 and not layer.in_groups:
        return f"its weight is in float: {asked} stores those of linear layers as wide as a group"
    if asked == INT8 and layer.unquantized:
        return layer.unquantized
    if kernel is None:
        return "no operator of OpenVINO's graph names it, so it counts as float"
    if asked != INT8:
        return f"OpenVINO runs it as {kernel}: it reads stored weights only in groups that divide a layer's inputs"
    return f"OpenVINO runs it as {kernel} although its input and weight are quantized"


def demand_types(graph: RuntimeGraph, precision: str) -> None:
    """Raise ExportError where OpenVINO computes in 16 bits without being asked to."""
    half = [each for each in graph.operators if each.precision in HALF_TYPES.values()]
    if half and precision not in HALF_TYPES:
        raise ExportError(
            f"OpenVINO computes {len(half)} operators of an {precision} engine in 16 bits, the first one {half[0].name}"
            f" ({half[0]}), though its settings ask for the types that the graph is written in"
        )


STORED_REMARK = (
    "what layers with stored weights read is rounded to int8 as it comes, "
    f"{ROUNDED_AT_ONCE} values at a time, where the processor has products of int8"
)


def half_remark(model: "ModelProto", graph: RuntimeGraph, precision: str) -> str:
    """In which types OpenVINO computes the layers of a 16-bit graph."""
    kernels = [graph.computing(layer.node.name) for layer in weighted_layers(model)]
    so = sum(kernel is not None and kernel.precision == HALF_TYPES[precision] for kernel in kernels)
    if so == 0:
        return (
            f"none of its {len(kernels)} convolutions and linear layers is computed in {precision}: OpenVINO has no "
            "such kernels for this processor and computes in float32; the file alone is smaller"
        )
    others = "" if so == len(kernels) else ", the others in float32"
    return f"{so} of its {len(kernels)} convolutions and linear layers are computed in {precision}{others}"
