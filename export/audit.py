"""Which layers an engine really runs in int8 or by weights in few bits, and why the others are left in float."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..pipeline.errors import AuditError
from .dialects import LAYER_OPERATORS, RECTIFIERS, inferred_shapes, initializers, is_in_groups, makers, readers
from .measurement import Audit, LayerPrecision
from .notes import notes
from .onnx_file import LENGTH, layer_name
from .sixteen_bits import Half, onnx_type

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

INT8_KERNELS = frozenset(
    {
        *("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul"),
        *("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
    }
)
"""ONNX Runtime's operators that multiply in int8."""

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
STORED_WEIGHTS = "MatMulNBits"
"""ONNX Runtime's operator that multiplies by weights in few bits."""

WHY_RECURRENT = "ONNX Runtime has no int8 kernel for recurrent layers; `min_int8_share` is asked of the others"


def audited(exported: "ModelProto", optimized: "ModelProto", min_int8_share: float | None) -> Audit:
    """Compare the graph that was given to ONNX Runtime with the one that it made of it.

    A layer counts as quantized only when such an operator that stands for it is found; what cannot be found is float.
    """
    graph = _Graph(exported)
    kernels = _Kernels(optimized.graph)
    layers = tuple(
        graph.precision_of(node, kernels.running(node, graph.weight_constant(node))) for node in graph.layers()
    )
    layers = (*layers, *graph.recurrent_layers())
    total = sum(layer.macs for layer in layers)
    share = sum(layer.macs for layer in layers if layer.precision != "float") / total if total else 0.0
    return Audit(layers=layers, precision=graph.precision, int8_share=share, min_int8_share=min_int8_share)


def without_float_layers(
    audit: Audit, paths: Collection[str], reason: str = "the `quantize` stage left it in float"
) -> Audit:
    """The same audit with the layers in these modules marked as in float on purpose, for this reason."""

    def marked(layer: LayerPrecision) -> LayerPrecision:
        name = layer.name.partition("#")[0]
        within = any(name == path or name.startswith(f"{path}.") for path in paths)
        if layer.precision == audit.precision or not within:
            return layer
        return layer.model_copy(update={"reason": reason, "on_purpose": True})

    return audit.model_copy(update={"layers": tuple(map(marked, audit.layers))})


def with_reason(audit: Audit, reason: str) -> Audit:
    """The same audit with another reason for each layer that is in float."""
    layers = (
        layer.model_copy(update={"reason": reason}) if layer.precision == "float" and not layer.on_purpose else layer
        for layer in audit.layers
    )
    return audit.model_copy(update={"layers": tuple(layers)})


def demand_share(audit: Audit, label: str) -> None:
    """Raise AuditError when less runs in int8 than the target demands; names the layers and the reasons.

    Layers that are in float on purpose do not count.
    """
    asked = [layer for layer in audit.layers if not layer.on_purpose]
    total = sum(layer.macs for layer in asked)
    share = sum(layer.macs for layer in asked if layer.precision == audit.precision) / total if total else 0.0
    if audit.min_int8_share is None or share >= audit.min_int8_share:
        return
    others = sorted((layer for layer in asked if layer.precision != audit.precision), key=lambda layer: -layer.macs)
    lines = [f"  {layer.name} ({layer.kind}, {layer.macs / total:.1%}): {layer.reason}" for layer in others]
    where = "In float" if all(layer.precision == "float" for layer in others) else f"Not in {audit.precision}"
    raise AuditError(
        f"{label}: {share:.1%} of the multiply-accumulates run in {audit.precision}, "
        f"min_int8_share demands {audit.min_int8_share:.1%}. {where} are\n" + "\n".join(lines) + "\n"
        "Mend: change the model where the reason says so, or lower min_int8_share."
    )


def half_remark(exported: "ModelProto", optimized: "ModelProto", half: Half = "fp16") -> str:
    """In which type ONNX Runtime computes the layers of a 16-bit graph, read from what it made of it.

    Where it has no kernel for 16 bits it casts a layer's weight to float32 when it loads the file.
    """
    total = sum(1 for _ in _Graph(exported).layers())
    weights = initializers(optimized.graph)
    kernels = [node for node in optimized.graph.node if re.sub("^Fused", "", node.op_type) in LAYER_OPERATORS]
    halves = [
        node for node in kernels if node.input[1] in weights and weights[node.input[1]].data_type == onnx_type(half)
    ]
    if not halves:
        return (
            f"none of its {total} convolutions and linear layers is computed in {half}: ONNX Runtime has no such "
            "kernels for this processor, casts to float32 and computes there; the file alone is smaller"
        )
    return f"{len(halves)} of its {total} convolutions and linear layers are computed in {half}, the others in float32"


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or matrix product with a constant weight, or a recurrent layer, in a graph as exported."""

    node: "NodeProto"
    path: str
    """Of its module."""
    macs: int
    """For one sample."""
    weight_type: int
    """ONNX's number for the type that its weight is stored in."""
    in_groups: bool = False
    """Whether its weight is stored in groups."""
    unquantized: str = ""
    """Why no kernel could multiply int8 here: its input or its weight is not quantized."""


def weighted_layers(model: "ModelProto") -> "Iterator[WeightedLayer]":
    """Every layer that an audit asks for, in the order of the graph, recurrent ones last."""
    graph = _Graph(model)
    for node in graph.layers():
        weight = graph.weight_constant(node)
        assert weight is not None
        yield WeightedLayer(
            node,
            layer_name(node),
            graph.macs(node),
            graph.constant_type(weight),
            in_groups=graph.has_stored_weight(node),
            unquantized=graph.input_problem(node) or "",
        )
    recurrent = (node for node in model.graph.node if node.op_type in RECURRENT)
    for node, layer in zip(recurrent, graph.recurrent_layers(), strict=True):
        yield WeightedLayer(node, layer.name, layer.macs, graph.constant_type(node.input[1]))


class _Kernels:
    """The quantized operators of an optimised graph, to be found by the layer they stand for."""

    def __init__(self, graph: "GraphProto") -> None:
        kernels = [node for node in graph.node if node.op_type in (*INT8_KERNELS, STORED_WEIGHTS)]
        # ONNX Runtime keeps a layer's name and may append a counter; weights it does not repack keep theirs, too.
        self._by_name = {re.sub(r"_token_\d+$", "", node.name): node.op_type for node in kernels}
        self._by_weight = {name: node.op_type for node in kernels for name in node.input}

    def running(self, layer: "NodeProto", weight: str | None) -> str | None:
        return self._by_name.get(layer.name) or (None if weight is None else self._by_weight.get(weight))


@dataclass(frozen=True)
class _Output:
    """Where a layer's result goes: the node whose output the quantizers read, and all that reads it."""

    source: "NodeProto"
    readers: "list[NodeProto]"


class _Graph:
    """The graph as exported."""

    def __init__(self, model: "ModelProto") -> None:
        self._nodes = list(model.graph.node)
        self._inputs = {value.name for value in model.graph.input}
        self._outputs = {value.name for value in model.graph.output}
        self._made_by: Mapping[str, NodeProto] = makers(model.graph)
        self._readers: Mapping[str, list[NodeProto]] = readers(model.graph)
        self._constants: Mapping[str, TensorProto] = initializers(model.graph)
        length = notes(model).get(LENGTH)
        self._shapes = inferred_shapes(model, batch=1, length=None if length is None else int(length))

    def layers(self) -> "Iterator[NodeProto]":
        """Convolutions and matrix products with a constant weight, in the order of the graph."""
        for node in self._nodes:
            if node.op_type in LAYER_OPERATORS and self.weight_constant(node) is not None:
                yield node

    def recurrent_layers(self) -> "Iterator[LayerPrecision]":
        """What runs step by step, as in float on purpose: nothing that a recipe could change would make it int8."""
        for node in self._nodes:
            if node.op_type in RECURRENT:
                steps = self._shapes[node.input[0]][0]
                weights = sum(math.prod(self._shapes[name]) for name in node.input[1:3])
                yield LayerPrecision(
                    name=layer_name(node),
                    kind=node.op_type,
                    precision="float",
                    macs=steps * weights,
                    reason=WHY_RECURRENT,
                    on_purpose=True,
                )

    def weight_constant(self, layer: "NodeProto") -> str | None:
        """The stored tensor behind the layer's second input; None where that is an activation."""
        name = layer.input[1]
        while name not in self._constants:
            node = self._made_by.get(name)
            if node is None or node.op_type not in ("DequantizeLinear", "Transpose", "Cast"):
                return None
            name = node.input[0]
        return name

    def constant_type(self, name: str) -> int:
        """ONNX's number for a tensor's type; that of undefined for what is no constant."""
        return self._constants[name].data_type if name in self._constants else 0

    def precision_of(self, layer: "NodeProto", kernel: str | None) -> LayerPrecision:
        return LayerPrecision(
            name=layer_name(layer),
            kind=layer.op_type,
            precision="float" if kernel is None else self.precision if kernel == STORED_WEIGHTS else "int8",
            macs=self.macs(layer),
            reason=self._why_float(layer) if kernel is None else f"runs as {kernel}",
            on_purpose=kernel is None and self.precision != "int8" and not self.has_stored_weight(layer),
        )

    @property
    def precision(self) -> Literal["int8", "int8_weights", "int4_weights"]:
        """That the graph was exported in; weights in groups are only in graphs that leave activations in float."""
        import onnx

        stored = (self._constants[node.input[0]].data_type for node in self._nodes if is_in_groups(node))
        bits = next(stored, None)
        if bits is None:
            return "int8"
        return "int4_weights" if bits == onnx.TensorProto.UINT4 else "int8_weights"

    def has_stored_weight(self, layer: "NodeProto") -> bool:
        """Whether its weight is stored in groups."""
        weight = self._weight_maker(layer)
        return weight is not None and is_in_groups(weight)

    def macs(self, layer: "NodeProto") -> int:
        weight, output = self._shapes[layer.input[1]], self._shapes[layer.output[0]]
        if layer.op_type == "Conv":
            return math.prod(output) * math.prod(weight[1:])
        if layer.op_type == "ConvTranspose":
            return math.prod(self._shapes[layer.input[0]]) * math.prod(weight[1:])
        transposed = any(attribute.name == "transB" and attribute.i for attribute in layer.attribute)
        return math.prod(output) * weight[-1 if transposed else -2]

    def _why_float(self, layer: "NodeProto") -> str:
        if self.precision != "int8":
            if self.has_stored_weight(layer):
                return "ONNX Runtime did not fuse its weight's DequantizeLinear, which then runs on every call"
            return f"its weight is in float: {self.precision} stores those of linear layers as wide as a group"
        if layer.op_type == "ConvTranspose":
            return (
                "ONNX Runtime has no int8 kernel for transposed convolutions on the CPU; those in two dimensions, with "
                "equal strides and no dilation, become convolutions where their input, weight and output are quantized"
            )
        return (
            self.input_problem(layer)
            or self._output_problem(layer)
            or "ONNX Runtime left it in float although its input, weight and output are quantized"
        )

    def input_problem(self, layer: "NodeProto") -> str | None:
        """Which operand of a layer is not quantized; None where both are."""
        source = self._made_by.get(layer.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            origin = "the model's input" if source is None else _called(source)
            return f"its input is not quantized: it comes from {origin}"
        weight = self._weight_maker(layer)
        if weight is None or weight.op_type != "DequantizeLinear":
            return "its weight is not quantized"
        return None

    def _weight_maker(self, layer: "NodeProto") -> "NodeProto | None":
        """What makes its weight, before a transposition."""
        maker = self._made_by.get(layer.input[1])
        return self._made_by.get(maker.input[0]) if maker is not None and maker.op_type == "Transpose" else maker

    def _output_problem(self, layer: "NodeProto") -> str | None:
        output = self._output(layer)
        quantizers = [node for node in output.readers if node.op_type == "QuantizeLinear"]
        others = [node for node in output.readers if node.op_type != "QuantizeLinear"]
        behind = "" if output.source is layer else f" behind {_called(output.source)}"
        if not quantizers:
            goes = ", ".join(_called(node) for node in others) or "the model's output"
            return f"there is no quantizer on its output{behind}: it goes to {goes}"
        if others or len(quantizers) > 1 or output.source.output[0] in self._outputs:
            count = len(output.readers) + (output.source.output[0] in self._outputs)
            return f"its output{behind} has {count} readers, where one quantizer alone must read it"
        if behind and not self._starts_at_zero(quantizers[0]):
            return f"the quantizer{behind} has a zero point above 0, so the rectifier cannot be left to it"
        return None

    def _output(self, layer: "NodeProto") -> _Output:
        """The layer's own output, or that of the rectifier which alone reads it."""
        found = self._readers.get(layer.output[0], [])
        if len(found) == 1 and found[0].op_type in RECTIFIERS:
            return _Output(found[0], self._readers.get(found[0].output[0], []))
        return _Output(layer, found)

    def _starts_at_zero(self, quantizer: "NodeProto") -> bool:
        import onnx

        codes = onnx.numpy_helper.to_array(self._constants[quantizer.input[2]])
        return codes.dtype.kind == "u" and not codes.any()


def _called(node: "NodeProto") -> str:
    path = layer_name(node)
    return f"{node.op_type} ({path})" if path else node.op_type
