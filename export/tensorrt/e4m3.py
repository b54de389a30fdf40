"""A quantized graph with the codes of fp8 (E4M3) in the place of int8, for TensorRT.

The placement is that of int8, the ranges are the same: a scale is the largest absolute value over 448, the largest code
(Micikevicius et al. 2022, arXiv 2209.05433). Weights, too, have one scale: with one for each channel TensorRT computes
the layer in 16 bits (github.com/NVIDIA/TensorRT-Model-Connect, pull request 1386).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...pipeline.errors import ExportError
from ..dialects import drop_unused, inferred_shapes, initializers, makers
from ..engine import Array
from ..onnx_file import check

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

LARGEST_CODE = 448.0
LARGEST_INT8_CODE = 127

FEWEST_CHANNELS = 16
LARGEST_KERNEL = 32
"""Channels and positions of a kernel that TensorRT's fp8 kernels take (its release notes, and Model Optimizer)."""

ZERO_POINT = "zero_point:fp8"
_WEIGHTS_OF = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


@dataclass(frozen=True)
class Weight:
    """A weight as it was before it was quantized."""

    parameter: str
    """Its name in the model."""
    values: Array
    """float32, in the shape of its codes."""
    amax: float
    """The largest absolute value that its int8 grids hold."""


def original_weights(model: "ModelProto", parameters: Mapping[str, Array], largest_code: int) -> dict[str, Weight]:
    """The weight behind each tensor of int8 codes, by the tensor's name.

    `parameters` are the model's quantized weights by name. An exported graph does not say which of them a tensor of
    codes comes from; a weight is known by having exactly these codes. Raises ExportError where none has.
    """
    import onnx

    constants = initializers(model.graph)
    found: dict[str, Weight] = {}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        codes = onnx.numpy_helper.to_array(constants[node.input[0]])
        scales = onnx.numpy_helper.to_array(constants[node.input[1]])
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        name = _owner(codes, _along(scales, axis, codes.ndim), parameters, largest_code)
        if name is None:
            raise ExportError(f"{node.name}: no weight of the model has these codes, so they cannot be written in fp8")
        found[node.input[0]] = Weight(name, parameters[name], float(scales.max()) * largest_code)
    return found


def _owner(codes: Array, scales: Array, parameters: Mapping[str, Array], largest_code: int) -> str | None:
    import numpy as np

    for name, values in parameters.items():
        if values.shape == codes.shape:
            exact = np.clip(values / scales, -largest_code, largest_code)
            # Ties fall to either side where a division is rounded.
            if float(np.abs(exact - codes).max(initial=0)) <= 0.501:
                return name
    return None


def _along(scales: Array, axis: int, ndim: int) -> Array:
    return scales if not scales.ndim else scales.reshape([-1 if each == axis else 1 for each in range(ndim)])


def without_kernels(model: "ModelProto") -> dict[str, str]:
    """The layers of an int8 graph that TensorRT has no fp8 kernels for, by their names, and why."""
    shapes, made_by, constants = inferred_shapes(model), makers(model.graph), initializers(model.graph)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHTS_OF and _weight_dequantizer(node, made_by, constants) is not None:
            problem = _kernel_problem(node, shapes[node.input[1]])
            if problem is not None:
                found[node.name] = problem
    return found


def _kernel_problem(node: "NodeProto", weight: tuple[int, ...]) -> str | None:
    if node.op_type == "ConvTranspose":
        return "fp8 is not offered for transposed convolutions"
    if node.op_type != "Conv":
        if min(weight) < FEWEST_CHANNELS:
            return f"fp8 products need {FEWEST_CHANNELS} inputs and outputs at least"
        return None
    if any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute):
        return "there are no fp8 kernels for grouped convolutions"
    outputs, inputs, *kernel = weight
    if min(outputs, inputs) < FEWEST_CHANNELS or outputs % FEWEST_CHANNELS != inputs % FEWEST_CHANNELS:
        return f"fp8 convolutions need {FEWEST_CHANNELS} channels at least, and as many beyond a multiple on both sides"
    if math.prod(kernel) > LARGEST_KERNEL:
        return f"fp8 kernels reach over {LARGEST_KERNEL} positions at most"
    return None


def left_in_float(model: "ModelProto", layers: Mapping[str, str], weights: Mapping[str, Weight]) -> tuple[str, ...]:
    """Give the named layers of a graph their weights back in float, in place; returns the parameters' names."""
    import onnx

    made_by, constants = makers(model.graph), initializers(model.graph)
    left: list[str] = []
    for node in list(model.graph.node):
        dequantizer = _weight_dequantizer(node, made_by, constants) if node.name in layers else None
        if dequantizer is not None and dequantizer in model.graph.node:
            weight = weights[dequantizer.input[0]]
            model.graph.initializer.append(onnx.numpy_helper.from_array(weight.values, dequantizer.output[0]))
            model.graph.node.remove(dequantizer)
            left.append(weight.parameter)
    drop_unused(model.graph)
    return tuple(left)


def _weight_dequantizer(
    node: "NodeProto", made_by: "Mapping[str, NodeProto]", constants: Mapping[str, object]
) -> "NodeProto | None":
    source = made_by.get(node.input[_WEIGHTS_OF[node.op_type]]) if node.op_type in _WEIGHTS_OF else None
    while source is not None and source.op_type == "Transpose":
        source = made_by.get(source.input[0])
    stored = source is not None and source.op_type == "DequantizeLinear" and source.input[0] in constants
    return source if stored else None


def in_e4m3(model: "ModelProto", weights: Mapping[str, Weight]) -> "ModelProto":
    """A copy of a graph in TensorRT's int8 form with fp8 codes; `weights` are those of `original_weights`."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    zero = onnx.helper.make_tensor(ZERO_POINT, onnx.TensorProto.FLOAT8E4M3FN, (), [0.0])
    made = {ZERO_POINT: zero}
    for node in copy.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            made |= {tensor.name: tensor for tensor in _new_grid(copy, node, weights)}
    copy.graph.initializer.extend(made.values())
    drop_unused(copy.graph)
    check(copy)
    return copy


def _new_grid(model: "ModelProto", node: "NodeProto", weights: Mapping[str, Weight]) -> "Iterator[TensorProto]":
    """Turn a quantizer or dequantizer to fp8; yields the constants that it reads from now on."""
    import numpy as np
    import onnx

    source, scale = node.input[0], node.input[1]
    kept = [attribute for attribute in node.attribute if attribute.name != "axis"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if source in weights:
        weight = weights[source]
        step = np.asarray(weight.amax / LARGEST_CODE, np.float32)
        node.input[0] = f"{source}:fp8"
        yield onnx.numpy_helper.from_array(codes_of(weight.values, step), node.input[0])
    else:
        step = onnx.numpy_helper.to_array(initializers(model.graph)[scale]) * LARGEST_INT8_CODE / LARGEST_CODE
    node.input[1] = f"{source if source in weights else scale}:fp8-scale"
    node.input[2] = ZERO_POINT
    yield onnx.numpy_helper.from_array(np.asarray(step, np.float32), node.input[1])


def codes_of(values: Array, scale: Array) -> Array:
    """Values as the nearest E4M3 codes at this scale; what is beyond the largest code becomes that."""
    import numpy as np
    import onnx

    e4m3 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
    return np.clip(values / scale, -LARGEST_CODE, LARGEST_CODE).astype(e4m3)
