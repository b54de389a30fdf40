"""The form that OpenVINO's low-precision transformations fuse."""

from typing import TYPE_CHECKING

from .graph import drop_unused, initializers, is_in_groups, makers
from .grids import rectified_from_zero, signed_where_symmetric

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def for_openvino(model: "ModelProto") -> "ModelProto":
    """A copy without the zero points and quantizers that OpenVINO does not take into its kernels.

    A zero point that is not 0 costs it a subtraction before a matrix product, so codes of symmetric grids start at zero
    behind a ReLU and are int8 elsewhere; the numbers stay. Where a constant is quantized to be added, it gives the
    graph up (2026.4.1, "CALLBACK HAS THROWN" from AddTransformation), so constants are rounded here. It reads no
    weights in groups of which the last one is smaller: these become float. It gets shifts of bytes wrong (2026.4.1), by
    which codebooks are unpacked, so their numbers take a byte each. Its kernels for ReduceMean, MatMul on tokens
    and ConvTranspose take int8, so these stay as torch exports them.
    """
    from ..codebooks import with_whole_numbers

    copy = with_whole_numbers(model)
    rectified_from_zero(copy.graph)
    signed_where_symmetric(copy.graph)
    _round_constants(copy.graph)
    _unpack_uneven_groups(copy.graph)
    drop_unused(copy.graph)
    return copy


def _round_constants(graph: "GraphProto") -> None:
    """Put what a quantizer and its dequantizer make of a constant in their place."""
    import numpy as np
    from onnx.numpy_helper import from_array, to_array

    constants, made_by = initializers(graph), makers(graph)
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantizer = made_by.get(node.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear" or quantizer.input[0] not in constants:
            continue
        values, scale, zero = (to_array(constants[name]) for name in quantizer.input)
        limits = np.iinfo(zero.dtype)
        codes = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
        graph.initializer.append(from_array(((codes - zero) * scale).astype(values.dtype), node.output[0]))
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
