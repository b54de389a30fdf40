"""Reading ONNX graphs: who makes a tensor, who reads it, and its shape."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

RECTIFIERS = frozenset({"Relu", "Clip"})
"""What a uint8 grid from zero makes redundant."""


def makers(graph: "GraphProto") -> "dict[str, NodeProto]":
    """Which node makes each tensor."""
    return {name: node for node in graph.node for name in node.output}


def readers(graph: "GraphProto") -> "dict[str, list[NodeProto]]":
    """Which nodes read each tensor."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def initializers(graph: "GraphProto") -> "dict[str, TensorProto]":
    """The graph's constants by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def is_in_groups(node: "NodeProto") -> bool:
    """Whether it dequantizes a weight that is stored in groups."""
    return node.op_type == "DequantizeLinear" and any(attribute.name == "block_size" for attribute in node.attribute)


def inferred_shapes(
    model: "ModelProto", batch: int | None = None, length: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by ONNX shape inference; free dimensions are 0.

    Unless `batch` fills the inputs' first dimension, and `length` their second where it is free.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if batch is not None:
        for value in copy.graph.input:
            first, *others = value.type.tensor_type.shape.dim
            first.dim_value = batch
            if length is not None and others and not others[0].HasField("dim_value"):
                others[0].dim_value = length
        del copy.graph.output[:]
        copy.graph.output.extend(
            onnx.helper.make_tensor_value_info(output.name, output.type.tensor_type.elem_type, None)
            for output in model.graph.output
        )
    graph = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes = {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def drop_unused(graph: "GraphProto") -> None:
    """Remove the nodes and constants that nothing reads."""
    outputs = {value.name for value in graph.output}
    while True:
        used = outputs | {name for node in graph.node for name in node.input}
        dead = [node for node in graph.node if not used.intersection(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
