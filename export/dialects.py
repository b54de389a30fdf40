"""One quantized model, written the way each runtime fuses best."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..pipeline.errors import ExportError
from .onnx_file import layer_name

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LAYER_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def for_onnxruntime_cpu(model: "ModelProto") -> "ModelProto":
    """A copy in the form that ONNX Runtime's CPU kernels fuse.

    They have an integer kernel for GlobalAveragePool and none for the ReduceMean that torch makes of
    ``AdaptiveAvgPool2d(1)``; the float graph gains a transposition less. They have one for Gemm, bias and all, and for
    the MatMul and Add that torch makes of a linear layer on tokens only one that goes back to float between the two.
    Behind a ReLU the codes of symmetric grids start at zero.
    Raises ExportError where the quantized part of the graph is not what the fusion rules read: weights folded to int8,
    zero points that are written out.
    """
    import onnx

    from .grids import rectified_from_zero

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _check_quantization(copy.graph)
    rectified_from_zero(copy.graph)
    _pool_globally(copy)
    _multiply_rows(copy)
    drop_unused(copy.graph)
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


def _multiply_rows(model: "ModelProto") -> None:
    """Turn quantized linear layers on (N, tokens…, features) into Gemm on (N · tokens, features).

    The shapes around it change on the codes, between two quantizers. Only where the batch alone is free: the shape
    behind the Gemm is then a constant.
    """
    graph = model.graph
    shapes, made_by, read_by = inferred_shapes(model), makers(graph), readers(graph)
    instead: dict[str, Sequence[NodeProto]] = {}
    for node in graph.node:
        shape = shapes.get(node.output[0], ()) if node.op_type == "MatMul" else ()
        layer = _token_layer(node, made_by, read_by, shapes) if len(shape) >= 3 and 0 not in shape[1:] else None
        if layer is not None:
            instead |= {old.output[0]: () for old in (layer.product, *layer.behind)}
            instead[layer.quantizer.output[0]] = layer.as_gemm()
            graph.initializer.extend(layer.shapes_around(shape))
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

    @property
    def path(self) -> str:
        """Of the layer's module."""
        return layer_name(self.product)

    def shapes_around(self, output: Sequence[int]) -> "tuple[TensorProto, TensorProto]":
        """The shapes before and behind the Gemm; `output` is that of the layer, whose batch is left free."""
        import numpy as np
        import onnx

        def constant(name: str, shape: Sequence[int]) -> "TensorProto":
            return onnx.numpy_helper.from_array(np.array((-1, *shape), np.int64), f"{self.path}/{name}:shape")

        return constant("rows", (self.features,)), constant("maps", output[1:])

    def as_gemm(self) -> "tuple[NodeProto, ...]":
        """The nodes that take the place of the layer and of the quantizer behind it."""
        from onnx.helper import make_node as make

        rows, maps = f"{self.path}/rows", f"{self.path}/maps"
        codes, *grid = self.dequantizer.input
        operands = [f"{rows}:float", self.weight] + ([] if self.bias is None else [self.bias])
        result, rectified = f"{maps}:float", list["NodeProto"]()
        if any(node.op_type == "Relu" for node in self.behind):
            rectified = [make("Relu", [result], [f"{maps}:rectified"], name=f"{maps}/Relu")]
            result = f"{maps}:rectified"
        return (
            make("Reshape", [codes, f"{rows}:shape"], [rows], name=f"{rows}/Reshape"),
            make("DequantizeLinear", [rows, *grid], [f"{rows}:float"], name=f"{rows}/DequantizeLinear"),
            make("Gemm", operands, [f"{maps}:float"], name=f"{self.path}/Gemm", transB=1),
            *rectified,
            make("QuantizeLinear", [result, *self.quantizer.input[1:]], [maps], name=f"{maps}/QuantizeLinear"),
            make("Reshape", [maps, f"{maps}:shape"], [*self.quantizer.output], name=f"{maps}/Reshape"),
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
