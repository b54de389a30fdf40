"""Weights in few bits, written for the kernel that ONNX Runtime's CPU multiplies by them with."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from .graph import RECTIFIERS, initializers, is_in_groups, makers

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto


def store_transposed(model: "ModelProto") -> None:
    """Store weights in groups as (in, out), and let matrix products read them so.

    MatMulNBits takes the place of a MatMul or Gemm only where nothing stands between its weight's DequantizeLinear and
    it, a transposition by `transB` neither, where nothing else reads that, and where no Relu or Clip follows at once:
    Max and Min, which do the same, may.
    """
    graph = model.graph
    constants, made_by = initializers(graph), makers(graph)
    products = set[str]()
    nodes: list[NodeProto] = []
    for node in graph.node:
        weight = _transposed_weight(node, made_by)
        if weight is not None:
            nodes.append(_transposed(weight, node, graph, constants))
            node.input[1] = nodes[-1].output[0]
            for attribute in [attribute for attribute in node.attribute if attribute.name == "transB"]:
                node.attribute.remove(attribute)
            products.add(node.output[0])
        rectifies = node.op_type in RECTIFIERS and node.input[0] in products
        nodes += _limits(node, graph) if rectifies else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _limits(rectifier: "NodeProto", graph: "GraphProto") -> "list[NodeProto]":
    """A Relu or Clip as Max and Min."""
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    path, result = rectifier.name, rectifier.input[0]
    bounds = [*rectifier.input[1:]]
    if rectifier.op_type == "Relu":
        bounds = [f"{path}:zero"]
        graph.initializer.append(from_array(np.zeros((), np.float32), bounds[0]))
    nodes: list[NodeProto] = []
    for operator, bound in zip(("Max", "Min"), bounds, strict=False):
        if bound:
            nodes.append(make_node(operator, [result, bound], [f"{path}:{operator}"], name=f"{path}/{operator}"))
            result = f"{path}:{operator}"
    nodes[-1].output[0] = rectifier.output[0]
    return nodes


def _transposed_weight(node: "NodeProto", made_by: "Mapping[str, NodeProto]") -> "NodeProto | None":
    """The dequantizer of a weight in groups that a matrix product reads the other way round."""
    weight = made_by.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
    if weight is None:
        return None
    if node.op_type == "MatMul" and weight.op_type == "Transpose":
        weight = made_by.get(weight.input[0])
    elif not any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        return None
    return weight if weight is not None and is_in_groups(weight) else None


def _transposed(
    weight: "NodeProto", product: "NodeProto", graph: "GraphProto", constants: "Mapping[str, TensorProto]"
) -> "NodeProto":
    """The dequantizer of the transposed weight that `product` alone reads: a layer that runs twice is stored twice."""
    from onnx.helper import make_node, make_tensor
    from onnx.numpy_helper import to_array

    path = product.name.rpartition("/")[0]
    names = [f"{path}/{part}" for part in ("codes", "scale", "zero_point")]
    for old, new in zip(weight.input, names, strict=True):
        values = to_array(constants[old]).T
        graph.initializer.append(make_tensor(new, constants[old].data_type, values.shape, values.flatten().tolist()))
    name = f"{path}/DequantizeLinear"
    groups = next(attribute.i for attribute in weight.attribute if attribute.name == "block_size")
    return make_node("DequantizeLinear", names, [f"{name}:out"], name=name, axis=0, block_size=groups)
