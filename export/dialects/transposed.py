"""Transposed convolutions as convolutions to more channels, which ONNX Runtime's CPU runs in int8."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_file import layer_name
from .graph import RECTIFIERS, initializers, makers, readers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Array = NDArray[Any]


def convolve_to_depth(model: "ModelProto") -> None:
    """Turn quantized transposed convolutions into a convolution, a DepthToSpace of its codes, and a cut of the borders.

    With stride s every s-th output along an axis reads the same taps of the kernel: each of the s · s kinds of
    positions is an ordinary convolution of the input with every s-th tap in both directions, and all of them together
    one convolution to s · s times the channels (Shi et al. 2016, arXiv 1609.07009, §2). It multiplies the same numbers
    and adds zeros where s does not divide the kernel.
    """
    graph = model.graph
    constants, made_by, read_by = initializers(graph), makers(graph), readers(graph)
    instead: dict[str, Sequence[NodeProto]] = {}
    for node in graph.node:
        layer = _quantized_layer(node, made_by, read_by) if node.op_type == "ConvTranspose" else None
        if layer is not None:
            instead |= {old.output[0]: () for old in (node, *layer.rectifiers)}
            instead[layer.quantizer.output[0]] = layer.as_convolution()
            graph.initializer.extend(layer.constants(constants))
    nodes = [new for node in graph.node for new in instead.get(node.output[0], (node,))]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass(frozen=True)
class _Axis:
    """How a transposed convolution walks along one axis."""

    kernel: int
    stride: int
    before: int
    """Padding, of which each one takes away an output at the beginning."""
    extra: int
    """Outputs more at the end."""

    @property
    def taps(self) -> int:
        """Of the convolution."""
        return -(-self.kernel // self.stride)

    @property
    def _reach(self) -> int:
        return self.kernel - 1 + self.extra - self.before

    @property
    def pads(self) -> tuple[int, int]:
        """Of the convolution, before and after."""
        return self.taps - 1 - self.before // self.stride, self._reach // self.stride

    @property
    def cut(self) -> tuple[int, int]:
        """Outputs to take away at the beginning and at the end."""
        return self.before % self.stride, self.stride - 1 - self._reach % self.stride


@dataclass(frozen=True)
class _TransposedLayer:
    """A quantized transposed convolution: from the dequantizer of its input to the quantizer behind it."""

    node: "NodeProto"
    weight: "NodeProto"
    """The dequantizer of the weight (in, out / groups, rows, columns)."""
    rectifiers: "tuple[NodeProto, ...]"
    quantizer: "NodeProto"
    groups: int
    axes: tuple[_Axis, _Axis]

    @property
    def _path(self) -> str:
        return layer_name(self.node)

    @property
    def _stride(self) -> int:
        return self.axes[0].stride

    @property
    def _is_cut(self) -> bool:
        return any(side for axis in self.axes for side in axis.cut)

    def as_convolution(self) -> "tuple[NodeProto, ...]":
        """The nodes that take the place of the layer, its rectifier and the quantizer behind them."""
        from onnx.helper import make_node as make

        path = self._path
        bias = [f"{path}/bias"] if len(self.node.input) > 2 else []
        maps, codes, wide = f"{path}/maps", f"{path}/codes", f"{path}/wide"
        (rows_before, rows_after), (columns_before, columns_after) = (axis.pads for axis in self.axes)
        pads = [rows_before, columns_before, rows_after, columns_after]
        dequantized = [f"{path}/weight", f"{path}/weight:scale", f"{path}/weight:zero"]
        nodes = [
            make("DequantizeLinear", dequantized, [f"{path}/weight:float"], name=f"{path}/DequantizeLinear", axis=0),
            make(
                "Conv",
                [self.node.input[0], f"{path}/weight:float", *bias],
                [maps],
                name=f"{path}/Conv",
                group=self.groups,
                pads=pads,
            ),
        ]
        for rectifier in self.rectifiers:
            inputs = [maps, *rectifier.input[1:]]
            maps = f"{maps}:rectified"
            nodes.append(make(rectifier.op_type, inputs, [maps], name=f"{path}/{rectifier.op_type}"))
        nodes.append(make("QuantizeLinear", [maps, *self.quantizer.input[1:]], [codes], name=f"{path}/QuantizeLinear"))
        output = [wide] if self._is_cut else [*self.quantizer.output]
        name = f"{path}/DepthToSpace"
        nodes.append(make("DepthToSpace", [codes], output, name=name, blocksize=self._stride, mode="CRD"))
        if self._is_cut:
            cut = [wide, *(f"{path}/cut:{which}" for which in ("starts", "ends", "axes"))]
            nodes.append(make("Slice", cut, [*self.quantizer.output], name=f"{path}/Slice"))
        return tuple(nodes)

    def constants(self, known: "Mapping[str, TensorProto]") -> "list[TensorProto]":
        """The weight's codes and grid, the bias and the borders in the form that `as_convolution` reads."""
        from onnx.numpy_helper import from_array, to_array

        path = self._path
        codes, scale, zero = (to_array(known[name]) for name in self.weight.input)
        made = {
            f"{path}/weight": self._rearranged(codes),
            f"{path}/weight:scale": self._for_each_position(np.tile(scale, self.groups)),
            f"{path}/weight:zero": self._for_each_position(np.tile(zero, self.groups)),
        }
        if len(self.node.input) > 2:
            made[f"{path}/bias"] = self._for_each_position(to_array(known[self.node.input[2]]))
        if self._is_cut:
            starts, ends = zip(*(axis.cut for axis in self.axes), strict=True)
            whole = np.iinfo(np.int64).max
            made[f"{path}/cut:starts"] = np.array(starts, np.int64)
            made[f"{path}/cut:ends"] = np.array([-end if end else whole for end in ends], np.int64)
            made[f"{path}/cut:axes"] = np.array([2, 3], np.int64)
        return [from_array(array, name) for name, array in made.items()]

    def _rearranged(self, codes: Array) -> Array:
        """(in, out / groups, rows, columns) as (out · s · s, in / groups, taps, taps); what is added is zero."""
        stride = self._stride
        taps = [axis.taps for axis in self.axes]
        room = [(0, length * stride - axis.kernel) for length, axis in zip(taps, self.axes, strict=True)]
        padded = np.pad(codes, [(0, 0), (0, 0), *room])
        inputs, outputs = codes.shape[0] // self.groups, codes.shape[1]
        parts = padded.reshape(self.groups, inputs, outputs, taps[0], stride, taps[1], stride)
        # A later tap reads an earlier input.
        flipped = parts.transpose(0, 2, 4, 6, 1, 3, 5)[..., ::-1, ::-1]
        return np.ascontiguousarray(flipped.reshape(self.groups * outputs * stride**2, inputs, *taps))

    def _for_each_position(self, values: Array) -> Array:
        return np.repeat(values, self._stride**2)


def _quantized_layer(
    node: "NodeProto", made_by: "Mapping[str, NodeProto]", read_by: "Mapping[str, list[NodeProto]]"
) -> _TransposedLayer | None:
    """The layer, where its input, weight and output are quantized and its walk has one stride; else None."""
    dequantizer, weight = made_by.get(node.input[0]), made_by.get(node.input[1])
    if dequantizer is None or weight is None or {dequantizer.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    rectifiers = list["NodeProto"]()
    following = read_by.get(node.output[0], [])
    if len(following) == 1 and following[0].op_type in RECTIFIERS:
        rectifiers += following
        following = read_by.get(following[0].output[0], [])
    axes = _axes(node)
    if axes is None or len(following) != 1 or following[0].op_type != "QuantizeLinear":
        return None
    return _TransposedLayer(
        node=node,
        weight=weight,
        rectifiers=tuple(rectifiers),
        quantizer=following[0],
        groups=next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1),
        axes=axes,
    )


def _axes(node: "NodeProto") -> tuple[_Axis, _Axis] | None:
    """Rows and columns; None where the layer is not two-dimensional or its walk has no such form."""
    lists = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    kernel, strides, pads = lists["kernel_shape"], lists["strides"], lists["pads"]
    if len(kernel) != 2 or len(set(strides)) != 1 or set(lists["dilations"]) != {1}:
        return None
    rows, columns = (
        _Axis(kernel=kernel[at], stride=strides[at], before=pads[at], extra=lists["output_padding"][at])
        for at in range(2)
    )
    # A padding beyond the kernel would have to take inputs away.
    return (rows, columns) if max(rows.before - rows.kernel, columns.before - columns.kernel) < 0 else None
