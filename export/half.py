"""The float part of a graph in 16 bits: typed constants, casts at the edges, and float32 where 16 bits do not do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dialects import drop_unused, initializers
from .onnx_file import check
from .sixteen_bits import (
    ATTRIBUTE_TYPED,
    QUANTIZERS,
    Half,
    element_types,
    holds_scales,
    only_for,
    onnx_type,
    reasons_for_float,
    rounded,
    takes,
)

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

BF16_OPSET = 22
"""The first one whose convolutions and pools take bfloat16."""


@dataclass(frozen=True)
class KeptInFloat:
    """An operator that stays in float32."""

    node: str
    reason: str


@dataclass(frozen=True)
class HalfModel:
    """A graph whose float part is in 16 bits, as far as that goes."""

    model: "ModelProto"
    kept: tuple[KeptInFloat, ...]

    def in_words(self) -> tuple[str, ...]:
        """Which operators stay in float32, a sentence for each reason."""
        by_reason: dict[str, list[str]] = {}
        for each in self.kept:
            by_reason.setdefault(each.reason, []).append(each.node)
        return tuple(f"stay in float32: {', '.join(nodes)} ({reason})" for reason, nodes in by_reason.items())


def in_half(model: "ModelProto", half: Half, ranges: Mapping[str, float]) -> HalfModel:
    """A copy whose float32 tensors are 16 bits wide, but for its inputs and outputs and what has to stay.

    `ranges` are the largest absolute values of the tensors on real inputs, as `measured_ranges` finds them. Quantizers
    take the type of what they read and dequantizers that of what reads them, so that no cast stands between a layer and
    its codes. Raises ExportError where the graph holds graphs within, as loops do.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (default,) = (entry for entry in copy.opset_import if entry.domain == "")
    if half == "bf16":
        default.version = max(default.version, BF16_OPSET)
    _round_scales(copy, half)
    kept = reasons_for_float(copy, half, default.version, ranges)
    _Rewriting(copy, half, default.version, {*kept, *only_for(copy, kept)}).run()
    drop_unused(copy.graph)
    check(copy)
    return HalfModel(copy, tuple(KeptInFloat(node, reason) for node, reason in kept.items()))


def _round_scales(model: "ModelProto", half: Half) -> None:
    """Round the scales that 16 bits hold at once, so that quantizers of both types lie on the same grid."""
    import onnx

    scales = {node.input[1] for node in model.graph.node if node.op_type in QUANTIZERS}
    for name, tensor in initializers(model.graph).items():
        if name in scales:
            values = onnx.numpy_helper.to_array(tensor)
            if holds_scales(values, half):
                tensor.CopyFrom(onnx.numpy_helper.from_array(rounded(values, half).astype(values.dtype), name))


class _Rewriting:
    """Types every node and constant of one graph, in place."""

    def __init__(self, model: "ModelProto", half: Half, opset: int, stay: set[str]) -> None:
        import onnx

        self._graph = model.graph
        self._half: Half = half
        self._opset = opset
        self._stay = stay
        self._float, self._wanted = int(onnx.TensorProto.FLOAT), onnx_type(half)
        self._was = element_types(model)
        self._outputs = {value.name for value in model.graph.output}
        self._constants = initializers(model.graph)
        self._is_now: dict[str, int] = {}
        """The types of what nodes make, as far as they were float32; inputs stay."""
        self._had_as: dict[tuple[str, int], str] = {}
        """Under which name a tensor is had in a type."""
        self._dequantizers: dict[str, NodeProto] = {}
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        for node in list(self._graph.node):
            if node.op_type == "DequantizeLinear":
                # Written when something reads it, in the type that it is read in.
                self._dequantizers[node.output[0]] = node
            elif node.op_type == "QuantizeLinear":
                self._quantize(node)
            else:
                self._retype(node)
        for name in self._outputs & {*self._dequantizers}:
            self._as(name, self._float)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _retype(self, node: "NodeProto") -> None:
        stays = node.name in self._stay or node.op_type in ATTRIBUTE_TYPED
        for index, name in enumerate(node.input):
            if self._was.get(name) == self._float:
                is_half = not stays and takes(node, index, self._half, self._opset)
                node.input[index] = self._as(name, self._wanted if is_half else self._float)
        self._nodes.append(node)
        for index, name in enumerate(node.output):
            if (
                self._was.get(name) == self._float
                and not stays
                and takes(node, index, self._half, self._opset, made=True)
            ):
                self._make_half(node, index)
        if node.op_type == "Cast" and not stays:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == self._float:
                    attribute.i = self._wanted

    def _make_half(self, node: "NodeProto", index: int) -> None:
        name = node.output[index]
        if name not in self._outputs:
            self._is_now[name] = self._wanted
            return
        # An output of the graph keeps its name and its type.
        node.output[index] = f"{name}:{self._half}"
        self._had_as[name, self._wanted] = node.output[index]
        self._cast(node.output[index], name, self._float)

    def _quantize(self, node: "NodeProto") -> None:
        """In the type of what is read, or in float32 where 16 bits do not hold the scale."""
        import onnx

        source = node.input[0]
        made_half = self._is_now.get(source, self._float) == self._wanted
        free = source in self._dequantizers or source in self._constants
        scales = onnx.numpy_helper.to_array(self._constants[node.input[1]])
        kind = self._wanted if (made_half or free) and holds_scales(scales, self._half) else self._float
        node.input[0], node.input[1] = self._as(source, kind), self._as(node.input[1], kind)
        self._nodes.append(node)

    def _as(self, name: str, kind: int) -> str:
        """The name under which a tensor is had in a type; writes what makes it so before the next node."""
        if (name, kind) not in self._had_as:
            self._had_as[name, kind] = self._brought(name, kind)
        return self._had_as[name, kind]

    def _brought(self, name: str, kind: int) -> str:
        import onnx

        suffix = "fp32" if kind == self._float else self._half
        if name in self._dequantizers:
            return self._dequantized(name, kind, suffix)
        if self._is_now.get(name, self._float) == kind:
            return name
        made = f"{name}:{suffix}"
        if name in self._constants:
            values = rounded(onnx.numpy_helper.to_array(self._constants[name]), self._half)
            self._graph.initializer.append(onnx.numpy_helper.from_array(values, made))
        else:
            self._cast(name, made, kind)
        return made

    def _dequantized(self, name: str, kind: int, suffix: str) -> str:
        """By a dequantizer of its own for each type in which the tensor is read; the first one keeps its name."""
        import onnx

        node = onnx.NodeProto()
        node.CopyFrom(self._dequantizers[name])
        is_second = any((name, other) in self._had_as for other in (self._float, self._wanted))
        # An output of the graph is float32, whichever is read first.
        if is_second or (name in self._outputs and kind != self._float):
            node.name, node.output[0] = f"{node.name}:{suffix}", f"{name}:{suffix}"
        node.input[1] = self._as(node.input[1], kind)
        self._nodes.append(node)
        return node.output[0]

    def _cast(self, source: str, made: str, kind: int) -> None:
        import onnx

        self._nodes.append(onnx.helper.make_node("Cast", [source], [made], name=f"{made}/Cast", to=kind))
