"""Which layer of the exported graph an operator of the optimised one stands for."""

import re
from typing import TYPE_CHECKING

from .dialects import LAYER_OPERATORS, makers

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

FUSED_INTO_LAYERS = frozenset(
    {"Relu", "Clip", "Sigmoid", "HardSigmoid", "LeakyRelu", "Add", "BatchNormalization"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
"""What ONNX Runtime takes into the kernel of the layer before it, which then is called by the last of them."""


class Origins:
    """The nodes of a graph as exported, to be found by the names in a runtime's profile."""

    def __init__(self, graph: "GraphProto") -> None:
        self._nodes = {node.name: node for node in graph.node}
        self._made_by = makers(graph)

    def layer_of(self, name: str, operator: str) -> str:
        """The module path of an operator `name` of the kind `operator`; empty for one that the runtime put in."""
        # In its blocked layout ONNX Runtime calls an operator by the tensor it makes.
        name = re.sub(r"(_nchwc|_token_\d+)$", "", name)
        node = self._nodes.get(name) or self._made_by.get(name)
        if node is None:
            return ""
        if "Conv" in operator or "Gemm" in operator or "MatMul" in operator:
            node = self._layer_behind(node) or node
        # Others than ours name their nodes without a path: then the node is the layer.
        return node.name.rpartition("/")[0] if "/" in node.name else node.name

    def _layer_behind(self, node: "NodeProto") -> "NodeProto | None":
        """The nearest layer that what was fused starts from: its first operand's, unless that is none."""
        if node.op_type in LAYER_OPERATORS:
            return node
        if node.op_type not in FUSED_INTO_LAYERS:
            return None
        before = (self._made_by.get(name) for name in node.input)
        found = (self._layer_behind(each) for each in before if each is not None)
        return next((each for each in found if each is not None), None)
