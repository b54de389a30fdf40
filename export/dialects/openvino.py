"""The form that OpenVINO's low-precision transformations fuse."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .graph import RECTIFIERS, drop_unused, inferred_shapes, initializers, is_in_groups, makers, readers
from .grids import MOVING, rectified_from_zero, signed_where_symmetric

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

ELEMENTWISE = RECTIFIERS | {"BatchNormalization", "Add", "Mul", "Concat"}
"""What OpenVINO computes in float whatever it reads."""
NORMS = frozenset({"LayerNormalization", "InstanceNormalization", "GroupNormalization"})
TILE = 64
"""How many bytes of inputs one row of a processor's tile register (AMX) holds."""


def for_openvino(model: "ModelProto") -> "ModelProto":
    """A copy in which OpenVINO finds every quantized layer, and without the zero points that cost it time.

    A zero point that is not 0 costs it a subtraction before a matrix product, so codes of symmetric grids start at zero
    behind a ReLU and are int8 elsewhere; the numbers stay. Its kernels for ReduceMean, MatMul on tokens and
    ConvTranspose take int8, so these stay as torch exports them. What it cannot read, or gets wrong (2026.4.1), is
    written otherwise:

    - Constants that are quantized to be added are rounded here: their quantizers made it give the graph up
      ("CALLBACK HAS THROWN" from AddTransformation).
    - Biases are additions: that of the convolution behind a ViT's patches went into the quantizer behind it, with the
      first channel's value for all.
    - Weights are products of codes and scales: behind their dequantizers, layers of models with a fixed batch stayed in
      float.
    - Concatenations that no layer reads at once keep the grids of what they join: it crashed where they were quantized,
      normed or rectified, and quantized again, as in DenseNet and ShuffleNet.
    - Norms of quantized values read them through a maximum with the lowest float: it normed the codes, with an epsilon
      that is meant for the values; the class token of a ViT came out wrong.
    - Kernels of 1×1 in groups get a tap of zeros: with AMX, sums over more inputs than a tile holds were wrong where
      the last tile was not full.
    - Weights whose last group is smaller than the others are float.
    - The numbers of codebooks take a byte each: it gets shifts of bytes wrong.
    """
    from ..codebooks import with_whole_numbers

    copy = with_whole_numbers(model)
    _drop_repeated(copy.graph)
    _leave_concatenations(copy.graph)
    rectified_from_zero(copy.graph)
    signed_where_symmetric(copy.graph)
    _round_constants(copy.graph)
    _unpack_uneven_groups(copy.graph)
    _norm_values(copy.graph)
    _lengthen_points(copy.graph)
    _add_biases(copy)
    _multiply_weights(copy.graph)
    drop_unused(copy.graph)
    return copy


def _drop_repeated(graph: "GraphProto") -> None:
    """Leave out quantizers of what lies on their grid already, and the dequantizers behind them."""
    made_by, constants = makers(graph), initializers(graph)
    instead: dict[str, str] = {}
    for node in list(graph.node):
        node.input[:] = [instead.get(name, name) for name in node.input]
        quantizer = made_by.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue
        origin = _origin(quantizer.input[0], made_by)
        if (
            origin is not None
            and origin.op_type == "DequantizeLinear"
            and _grid(origin, constants) == _grid(node, constants)
        ):
            instead[node.output[0]] = quantizer.input[0]
            graph.node.remove(node)


def _origin(tensor: str, made_by: "Mapping[str, NodeProto]") -> "NodeProto | None":
    """What computed a tensor's values, which others may have moved since; None for inputs and constants."""
    origin = made_by.get(tensor)
    while origin is not None and origin.op_type in MOVING:
        origin = made_by.get(origin.input[0])
    return origin


def _leave_concatenations(graph: "GraphProto") -> None:
    """Leave out the quantizers of concatenations that are read by nothing but what is quantized again, or joined."""
    made_by, read_by = makers(graph), readers(graph)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantizer, following = made_by.get(node.input[0]), read_by.get(node.output[0], [])
        joined = made_by.get(quantizer.input[0]) if quantizer is not None else None
        elsewhere = bool(following) and all(each.op_type in ELEMENTWISE for each in following)
        if quantizer is not None and joined is not None and joined.op_type == "Concat" and elsewhere:
            for each in following:
                each.input[:] = [quantizer.input[0] if name == node.output[0] else name for name in each.input]


def _grid(node: "NodeProto", constants: "Mapping[str, TensorProto]") -> tuple[bytes, bytes]:
    from onnx.numpy_helper import to_array

    scale, zero = (to_array(constants[name]) for name in node.input[1:3])
    return scale.tobytes(), zero.tobytes()


def _round_constants(graph: "GraphProto") -> None:
    """Put what a quantizer and its dequantizer make of a constant in their place, also where it is expanded first."""
    import numpy as np
    from onnx.numpy_helper import from_array, to_array

    constants, made_by = initializers(graph), makers(graph)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantizer = made_by.get(node.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue
        expansion = made_by.get(quantizer.input[0])
        expanded = expansion is not None and expansion.op_type == "Expand"
        source = expansion.input[0] if expansion is not None and expanded else quantizer.input[0]
        if source not in constants:
            continue
        values, scale, zero = (to_array(constants[name]) for name in (source, *quantizer.input[1:]))
        limits = np.iinfo(zero.dtype)
        codes = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
        rounded = ((codes - zero) * scale).astype(values.dtype)
        if expansion is not None and expanded:
            name = f"{node.output[0]}:rounded"
            expansion.input[0], expansion.output[0] = name, node.output[0]
        else:
            name = node.output[0]
        graph.initializer.append(from_array(rounded, name))
        graph.node.remove(node)


def _unpack_uneven_groups(graph: "GraphProto") -> None:
    """Put float weights in the place of those whose inputs are no multiple of a group."""
    import numpy as np
    from onnx.numpy_helper import from_array, to_array

    constants = initializers(graph)
    for node in [node for node in graph.node if is_in_groups(node)]:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        axis, size = attributes.get("axis", 1), attributes["block_size"]
        codes, scale, zero = (to_array(constants[name]) for name in node.input)
        if codes.shape[axis] % size:
            spread_scale, spread_zero = (
                np.repeat(each, size, axis).take(range(codes.shape[axis]), axis) for each in (scale, zero)
            )
            values = (codes.astype(scale.dtype) - spread_zero.astype(scale.dtype)) * spread_scale
            graph.initializer.append(from_array(values, node.output[0]))
            graph.node.remove(node)


def _norm_values(graph: "GraphProto") -> None:
    """Put what the codes cannot pass, and changes no value, between dequantizers and norms."""
    import numpy as np
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    made_by = makers(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        origin = _origin(node.input[0], made_by) if node.op_type in NORMS else None
        if origin is not None and origin.op_type == "DequantizeLinear":
            name = f"{node.name}|Max"
            graph.initializer.append(from_array(np.array(np.finfo(np.float32).min), f"{name}:lowest"))
            nodes.append(make_node("Max", [node.input[0], f"{name}:lowest"], [name], name=name))
            node.input[0] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _lengthen_points(graph: "GraphProto") -> None:
    """Append zeros to kernels of one point, and to the padding behind, where a group's last tile is not full."""
    import numpy as np
    from onnx.numpy_helper import from_array, to_array

    made_by, constants = makers(graph), initializers(graph)
    lengthened: set[str] = set()
    for node in [node for node in graph.node if node.op_type == "Conv"]:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        weight = made_by.get(node.input[1])
        if weight is None or weight.op_type != "DequantizeLinear" or attributes["group"].i == 1:
            continue
        name = f"{weight.input[0]}|lengthened"
        codes = to_array(constants[weight.input[0]])
        if codes.shape[1] > TILE and codes.shape[1] % TILE and codes[0, 0].size == 1:
            if name not in lengthened:
                graph.initializer.append(from_array(np.concatenate([codes, np.zeros_like(codes)], -1), name))
            lengthened.add(name)
            attributes["kernel_shape"].ints[-1] = 2
            attributes["pads"].ints[-1] += 1
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and f"{node.input[0]}|lengthened" in lengthened:
            node.input[0] = f"{node.input[0]}|lengthened"


def _add_biases(model: "ModelProto") -> None:
    """Take the biases out of convolutions; what is behind the bar in a node's name is none of the exported graph's."""
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array, to_array

    graph, shapes = model.graph, inferred_shapes(model)
    constants = initializers(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2 and node.input[2] in constants:
            name = f"{node.name}|Add"
            spread = to_array(constants[node.input[2]]).reshape(-1, *[1] * (len(shapes[node.input[1]]) - 2))
            graph.initializer.append(from_array(spread, f"{name}:bias"))
            result, node.output[0] = node.output[0], f"{node.name}|unbiased"
            del node.input[2:]
            nodes.append(make_node("Add", [node.output[0], f"{name}:bias"], [result], name=name))
    del graph.node[:]
    graph.node.extend(nodes)


def _multiply_weights(graph: "GraphProto") -> None:
    """Write dequantizers of weights around 0 as a cast and a product."""
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array, to_array

    constants = initializers(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        stored = node.op_type == "DequantizeLinear" and node.input[0] in constants and not is_in_groups(node)
        if not stored or to_array(constants[node.input[2]]).any():
            nodes.append(node)
            continue
        scale, rank = to_array(constants[node.input[1]]), len(constants[node.input[0]].dims)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        spread = from_array(scale.reshape([-1 if scale.ndim and each == axis else 1 for each in range(rank)]))
        spread.name = f"{node.name}|scale"
        graph.initializer.append(spread)
        cast = make_node("Cast", [node.input[0]], [f"{node.name}|float"], f"{node.name}|Cast", to=spread.data_type)
        nodes += [cast, make_node("Mul", [cast.output[0], spread.name], [*node.output], node.name)]
    del graph.node[:]
    graph.node.extend(nodes)
