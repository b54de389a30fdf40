"""The form that ONNX Runtime's CPU kernels fuse."""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from ...pipeline.errors import ExportError
from .global_pooling import pool_globally
from .graph import LAYER_OPERATORS, drop_unused, initializers, makers
from .grids import rectified_from_zero
from .stored_weights import store_transposed
from .token_layers import multiply_rows
from .transposed import convolve_to_depth

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def for_onnxruntime_cpu(model: "ModelProto") -> "ModelProto":
    """A copy in the form that ONNX Runtime's CPU kernels fuse.

    They have an integer kernel for GlobalAveragePool and none for the ReduceMean that torch makes of
    ``AdaptiveAvgPool2d(1)``; the float graph gains a transposition less. They have one for Gemm, bias and all, and for
    the MatMul and Add that torch makes of a linear layer on tokens only one that goes back to float between the two.
    They have none for ConvTranspose. Behind a ReLU the codes of symmetric grids start at zero. Raises ExportError where
    the quantized part of the graph is not what the fusion rules read: weights folded to int8, zero points that are
    written out.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _check_quantization(copy.graph)
    rectified_from_zero(copy.graph)
    pool_globally(copy)
    multiply_rows(copy)
    convolve_to_depth(copy)
    store_transposed(copy)
    drop_unused(copy.graph)
    return copy


def _check_quantization(graph: "GraphProto") -> None:
    constants, made_by, inputs = initializers(graph), makers(graph), {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            # Without a zero point a QuantizeLinear means uint8, whatever reads it.
            if len(node.input) < 3 or node.input[1] not in constants or node.input[2] not in constants:
                raise ExportError(f"{node.name}: scale and zero point must be constants of the graph")
        elif node.op_type in LAYER_OPERATORS and len(node.input) > 1:
            weight = made_by.get(node.input[1])
            folded = weight is None or weight.op_type != "DequantizeLinear" or weight.input[0] in constants
            # The second factor of attention's products is quantized at run time, too, and is no weight.
            if not folded and not _depends_on(inputs, node.input[1], made_by):
                raise ExportError(f"{node.name}: its weight is quantized at run time instead of stored as int8")


def _depends_on(inputs: Set[str], name: str, made_by: "Mapping[str, NodeProto]") -> bool:
    """Whether a tensor is computed from any of the graph's inputs."""
    waiting, seen = [name], set[str]()
    while waiting:
        tensor = waiting.pop()
        if tensor in inputs:
            return True
        if tensor not in seen and tensor in made_by:
            waiting.extend(made_by[tensor].input)
        seen.add(tensor)
    return False
