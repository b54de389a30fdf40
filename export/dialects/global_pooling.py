"""Means over whole images, written as the pooling that runtimes have kernels for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .graph import inferred_shapes, initializers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def pool_globally(model: "ModelProto") -> None:
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


def _is_spatial_mean(node: "NodeProto", constants: "Mapping[str, TensorProto]", rank: int) -> bool:
    if node.op_type != "ReduceMean" or rank != 4 or len(node.input) < 2 or node.input[1] not in constants:
        return False
    import onnx

    axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
    return {axis % rank for axis in axes} == {2, 3}
