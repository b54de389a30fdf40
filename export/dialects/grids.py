"""The codes of a quantized graph's activations, moved to the zero points that a runtime wants; the numbers stay.

Symmetric grids are exported as uint8 with zero point 128. ONNX Runtime's CPU kernels take a ReLU in where the zero
point behind it is 0; TensorRT knows int8 with zero point 0 alone.
"""

from typing import TYPE_CHECKING

from ...pipeline.errors import ExportError
from ...pipeline.quantization import SYMMETRIC_ZERO_POINT
from .graph import initializers, makers

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

MOVING = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "MaxPool", "Identity"}
)
"""Operators whose outputs are values of their first input, so that they lie on its grid."""

UNSIGNED_ZERO, SIGNED_ZERO = "zero_point:uint8", "zero_point:int8"


def rectified_from_zero(graph: "GraphProto") -> None:
    """Let the codes of symmetric grids start at zero behind a ReLU, as the CPU's fused kernels need it.

    The scale stays, so the same numbers have the same distance. Values above the largest that was calibrated for have
    codes of their own here, where the int8 form clips them.
    """
    made_by, moved = makers(graph), set[str]()
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and _zero_point(graph, node) == SYMMETRIC_ZERO_POINT:
            maker = made_by.get(node.input[0])
            if maker is not None and (_never_negative(graph, maker) or _moves_one_of(maker, moved)):
                node.input[2] = _constant(graph, UNSIGNED_ZERO)
                moved.add(node.output[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in moved:
            node.input[2] = _constant(graph, UNSIGNED_ZERO)
            moved.add(node.output[0])


def signed_where_symmetric(graph: "GraphProto") -> None:
    """Turn uint8 codes around zero point 128 into int8 ones with zero point 0; other grids stay."""
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and _zero_point(graph, node) == SYMMETRIC_ZERO_POINT:
            node.input[2] = _constant(graph, SIGNED_ZERO)


def signed(graph: "GraphProto") -> None:
    """Turn the activations' uint8 codes into int8 ones with zero point 0.

    Raises ExportError, naming the tensors, where a grid is not symmetric.
    """
    import onnx

    activations = [node for node in graph.node if _zero_point_type(graph, node) == onnx.TensorProto.UINT8]
    crooked = [
        node.input[0]
        for node in activations
        if node.op_type == "QuantizeLinear" and _zero_point(graph, node) != SYMMETRIC_ZERO_POINT
    ]
    if crooked:
        raise ExportError(
            f"int8 with zero point 0 cannot hold the grids of {', '.join(crooked[:5])}"
            f"{f' and {len(crooked) - 5} more tensors' if len(crooked) > 5 else ''}: their zero points are elsewhere.\n"
            "Mend: set `grids: symmetric` in the quantize stage."
        )
    for node in activations:
        node.input[2] = _constant(graph, SIGNED_ZERO)


def _moves_one_of(node: "NodeProto", tensors: set[str]) -> bool:
    return node.op_type in MOVING and node.input[0] in tensors


def _never_negative(graph: "GraphProto", node: "NodeProto") -> bool:
    import onnx

    if node.op_type == "Clip" and len(node.input) > 1 and node.input[1]:
        low = initializers(graph).get(node.input[1])
        return low is not None and bool(onnx.numpy_helper.to_array(low) >= 0)
    return node.op_type == "Relu"


def _zero_point_type(graph: "GraphProto", node: "NodeProto") -> int | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    return initializers(graph)[node.input[2]].data_type


def _zero_point(graph: "GraphProto", node: "NodeProto") -> int | None:
    """The one zero point of an activation; None for int8 grids, and for those of weights in groups."""
    import onnx

    tensor = initializers(graph)[node.input[2]]
    if tensor.data_type != onnx.TensorProto.UINT8 or tensor.dims:
        return None
    return int(onnx.numpy_helper.to_array(tensor))


def _constant(graph: "GraphProto", name: str) -> str:
    import numpy as np
    import onnx

    if name not in initializers(graph):
        dtype = np.uint8 if name == UNSIGNED_ZERO else np.int8
        graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), dtype), name))
    return name
