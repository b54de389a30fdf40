"""One quantized model, written the way each runtime fuses best."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..pipeline.errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def for_onnxruntime_cpu(model: "ModelProto") -> "ModelProto":
    """A copy in the form that ONNX Runtime's CPU kernels fuse.

    They have an integer kernel for GlobalAveragePool and none for the ReduceMean that torch makes of
    ``AdaptiveAvgPool2d(1)``; the float graph gains a transposition less. Raises ExportError where the quantized part
    of the graph is not what the fusion rules read: weights folded to int8, zero points that are written out.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _check_quantization(copy.graph)
    _pool_globally(copy)
    return copy


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


def _check_quantization(graph: "GraphProto") -> None:
    constants, made_by = initializers(graph), makers(graph)
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            # Without a zero point a QuantizeLinear means uint8, whatever reads it.
            if len(node.input) < 3 or node.input[1] not in constants or node.input[2] not in constants:
                raise ExportError(f"{node.name}: scale and zero point must be constants of the graph")
        elif node.op_type in LAYER_OPERATORS and len(node.input) > 1:
            weight = made_by.get(node.input[1])
            if weight is not None and weight.op_type == "DequantizeLinear" and weight.input[0] not in constants:
                raise ExportError(f"{node.name}: its weight is quantized at run time instead of stored as int8")


def _pool_globally(model: "ModelProto") -> None:
    """Turn means over both spatial axes of (N, C, H, W) into GlobalAveragePool."""
    import onnx

    graph = model.graph
    constants = initializers(graph)
    shapes = inferred_shapes(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if not _is_spatial_mean(node, constants, len(shapes.get(node.input[0], ())) if node.input else 0):
            nodes.append(node)
            continue
        keeps = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
        pooled = node.output[0] if keeps else f"{node.output[0]}:pooled"
        name = f"{node.name.rpartition('/')[0]}/GlobalAveragePool"
        nodes.append(onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=name))
        if not keeps:
            nodes.append(onnx.helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{name}/Flatten", axis=1))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _is_spatial_mean(node: "NodeProto", constants: "Mapping[str, TensorProto]", rank: int) -> bool:
    if node.op_type != "ReduceMean" or rank != 4 or len(node.input) < 2 or node.input[1] not in constants:
        return False
    import onnx

    axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
    return {axis % rank for axis in axes} == {2, 3}


def inferred_shapes(model: "ModelProto", batch: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by ONNX shape inference; free dimensions are 0, unless `batch` fills them."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if batch is not None:
        for value in copy.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = batch
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
