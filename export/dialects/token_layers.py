"""Linear layers on tokens, written for the kernel that ONNX Runtime's CPU has for linear layers on rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..onnx_file import layer_name
from .graph import inferred_shapes, makers, readers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


GEMM = "Gemm"


def multiply_rows(model: "ModelProto") -> None:
    """Turn quantized linear layers on (N, tokens…, features) into Gemm on (N · tokens, features).

    The shapes around it change on the codes, between two quantizers. Where the batch alone is free, the shape behind
    the Gemm is a constant; where the number of tokens is, too, it is made of the input's own at run time.
    """
    graph = model.graph
    shapes, made_by, read_by = inferred_shapes(model), makers(graph), readers(graph)
    instead: dict[str, Sequence[NodeProto]] = {}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        shape = shapes.get(node.output[0], ()) if node.op_type == "MatMul" else ()
        layer = _token_layer(node, made_by, read_by, shapes) if len(shape) >= 3 and shape[-1] else None
        if layer is not None:
            while layer.named(GEMM) in taken:
                layer = replace(layer, number=layer.number + 1)
            taken.add(layer.named(GEMM))
            instead |= {old.output[0]: () for old in (layer.product, *layer.behind)}
            free = 0 in shape[1:]
            instead[layer.quantizer.output[0]] = (*(layer.shape_at_run_time() if free else ()), *layer.as_gemm())
            graph.initializer.extend(layer.shapes_around(shape[-1:] if free else (-1, *shape[1:]), free=free))
    nodes = [new for node in graph.node for new in instead.get(node.output[0], (node,))]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass(frozen=True)
class _TokenLayer:
    """A linear layer on tokens as torch exports it: from the dequantizer of its input to the quantizer behind it."""

    product: "NodeProto"
    dequantizer: "NodeProto"
    weight: str
    """The dequantized weight, (out, in)."""
    features: int
    bias: str | None
    behind: "tuple[NodeProto, ...]"
    """The addition of the bias and the ReLU, where there are such."""
    quantizer: "NodeProto"
    number: int = 0
    """Among those that have the module's name, torch's own included."""

    @property
    def path(self) -> str:
        """Of the layer's module."""
        return layer_name(self.product)

    def named(self, what: str) -> str:
        """A name of its own among those of the module, which may have several layers, such as attention's."""
        return f"{self.path}/{what}{f'_{self.number}' if self.number else ''}"

    def shapes_around(self, output: Sequence[int], *, free: bool) -> "tuple[TensorProto, TensorProto]":
        """The shapes before and behind the Gemm; `output` is the latter, or its last size where more is `free`."""
        import numpy as np
        import onnx

        def constant(name: str, shape: Sequence[int]) -> "TensorProto":
            return onnx.numpy_helper.from_array(np.array(shape, np.int64), self.named(name))

        return constant("rows:shape", (-1, self.features)), constant("outputs" if free else "maps:shape", output)

    def shape_at_run_time(self) -> "tuple[NodeProto, ...]":
        """The nodes that make the shape behind the Gemm: that of the input, with as many features as outputs."""
        from onnx.helper import make_node as make

        before, maps = self.named("before"), self.named("maps:shape")
        return (
            make("Shape", [self.dequantizer.input[0]], [before], name=f"{before}/Shape", start=0, end=-1),
            make("Concat", [before, self.named("outputs")], [maps], name=f"{self.named('maps')}/Concat", axis=0),
        )

    def as_gemm(self) -> "tuple[NodeProto, ...]":
        """The nodes that take the place of the layer and of the quantizer behind it."""
        from onnx.helper import make_node as make

        rows, maps = self.named("rows"), self.named("maps")
        codes, *grid = self.dequantizer.input
        operands = [f"{rows}:float", self.weight] + ([] if self.bias is None else [self.bias])
        result, rectified = f"{maps}:float", list["NodeProto"]()
        if any(node.op_type == "Relu" for node in self.behind):
            rectified = [make("Relu", [result], [f"{maps}:rectified"], name=f"{maps}/Relu")]
            result = f"{maps}:rectified"
        return (
            make("Reshape", [codes, self.named("rows:shape")], [rows], name=f"{rows}/Reshape"),
            make("DequantizeLinear", [rows, *grid], [f"{rows}:float"], name=f"{rows}/DequantizeLinear"),
            make(GEMM, operands, [f"{maps}:float"], name=self.named(GEMM), transB=1),
            *rectified,
            make("QuantizeLinear", [result, *self.quantizer.input[1:]], [maps], name=f"{maps}/QuantizeLinear"),
            make("Reshape", [maps, self.named("maps:shape")], [*self.quantizer.output], name=f"{maps}/Reshape"),
        )


def _token_layer(
    node: "NodeProto",
    made_by: "Mapping[str, NodeProto]",
    read_by: "Mapping[str, list[NodeProto]]",
    shapes: Mapping[str, tuple[int, ...]],
) -> _TokenLayer | None:
    """The layer that a matrix product begins, where its input, weight and output are quantized; else None."""
    dequantizer, transposition = made_by.get(node.input[0]), made_by.get(node.input[1])
    if dequantizer is None or transposition is None or transposition.op_type != "Transpose":
        return None
    weight = made_by.get(transposition.input[0])
    if weight is None or {weight.op_type, dequantizer.op_type} != {"DequantizeLinear"}:
        return None
    bias, behind = None, list["NodeProto"]()
    following = read_by.get(node.output[0], [])
    if len(following) == 1 and following[0].op_type == "Add":
        (bias,) = {*following[0].input} - {node.output[0]}
        if bias in made_by or len(shapes[bias]) != 1:
            return None
        behind += following
        following = read_by.get(following[0].output[0], [])
    if len(following) == 1 and following[0].op_type == "Relu":
        behind += following
        following = read_by.get(following[0].output[0], [])
    if len(following) != 1 or following[0].op_type != "QuantizeLinear":
        return None
    return _TokenLayer(
        product=node,
        dequantizer=dequantizer,
        weight=transposition.input[0],
        features=shapes[transposition.input[0]][1],
        bias=bias,
        behind=tuple(behind),
        quantizer=following[0],
    )
