"""A quantized model in the form that TensorRT fuses: int8 with zero point 0, and quantizers only where they pay.

The placement rules are those of TensorRT's explicit quantization (NVIDIA, "Working with quantized types"): every input
of a layer with weights is quantized and its output is not; an addition takes the convolution before it in, so there is
no quantizer between the two, and the other addend, the skip, has its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..onnx_file import check
from .graph import LAYER_OPERATORS, drop_unused, initializers, makers, readers
from .grids import MOVING, signed
from .tensorrt_rules import demand_placement

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

POOLS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
JOINING = LAYER_OPERATORS | {"Add", "Mul"}
"""Those that read int8 where both operands are int8."""


@dataclass(frozen=True)
class TensorRTForm:
    """What TensorRT is to be given, and how it differs from what the CPU is given."""

    model: "ModelProto"
    """Its float part is still in fp32."""
    unrounded: tuple[str, ...]
    """The tensors whose quantizer is left out, by their names in the graph."""
    remarks: tuple[str, ...]
    """What will cost time, in words."""


def for_tensorrt(model: "ModelProto") -> TensorRTForm:
    """A graph made by `exported` for int8, in TensorRT's form.

    Raises ExportError where a grid is not symmetric, and where a rule of `tensorrt_rules` is broken.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    signed(copy.graph)
    _drop_axes(copy.graph)
    unwanted = list(_unwanted(_Pairs(copy.graph)))
    unrounded = tuple(pair.tensor for pair in unwanted)
    for pair in unwanted:
        _leave_out(copy.graph, pair)
    drop_unused(copy.graph)
    demand_placement(copy)
    check(copy)
    remarks = tuple(_concatenations(_Pairs(copy.graph)))
    return TensorRTForm(copy, unrounded, remarks)


def is_in_exported_form(model: "ModelProto") -> bool:
    """Whether a graph still has the uint8 codes that `exported` gives activations, which this form has not."""
    import onnx

    codes = {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear" and len(node.input) > 2}
    constants = initializers(model.graph)
    return any(constants[name].data_type == onnx.TensorProto.UINT8 for name in codes if name in constants)


@dataclass(frozen=True)
class _Pair:
    """A quantizer of an activation and the one dequantizer behind it."""

    quantizer: "NodeProto"
    dequantizer: "NodeProto"

    @property
    def tensor(self) -> str:
        """What is quantized."""
        return self.quantizer.input[0]

    @property
    def result(self) -> str:
        """What its readers get."""
        return self.dequantizer.output[0]


class _Pairs:
    """A graph's quantizers, and who reads what is behind them."""

    def __init__(self, graph: "GraphProto") -> None:
        self.graph = graph
        self.made_by: Mapping[str, NodeProto] = makers(graph)
        self.read_by: Mapping[str, list[NodeProto]] = readers(graph)
        self.outputs = {value.name for value in graph.output}
        self._constants = initializers(graph)
        found = (self._pair(node) for node in graph.node if node.op_type == "QuantizeLinear")
        self.by_result = {pair.result: pair for pair in found if pair is not None}

    def _pair(self, quantizer: "NodeProto") -> _Pair | None:
        behind = self.read_by.get(quantizer.output[0], [])
        return _Pair(quantizer, behind[0]) if len(behind) == 1 else None

    def of(self, name: str) -> _Pair | None:
        """The pair that a tensor comes from."""
        return self.by_result.get(name)

    def is_wanted(self, pair: _Pair) -> bool:
        """Whether something that reads int8 reads it, or does after its values were moved."""
        return any(self._reads_int8(node) for node in self.read_by.get(pair.result, []))

    def _reads_int8(self, node: "NodeProto") -> bool:
        if node.op_type in POOLS:
            return True
        if node.op_type in JOINING:
            return all(self.is_dequantized(name) for name in node.input[:2])
        if node.op_type in MOVING or node.op_type in ("Concat", "Resize"):
            return any(self._reads_int8(each) for name in node.output for each in self.read_by.get(name, []))
        if node.op_type == "QuantizeLinear":
            pair = self._pair(node)
            return pair is not None and self.is_wanted(pair)
        return False

    def is_dequantized(self, name: str) -> bool:
        """Whether a tensor is made of codes, also where its values were moved since."""
        node = self.made_by.get(name)
        while node is not None and node.op_type in MOVING:
            node = self.made_by.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    def joined(self, node: "NodeProto") -> list[_Pair]:
        """The pairs that both operands come from; fewer where an operand is a constant or in float."""
        found = (self.of(name) for name in node.input[:2])
        return [pair for pair in found if pair is not None]

    def layer_before(self, pair: _Pair) -> "NodeProto | None":
        """The layer whose output is quantized, with nothing but its bias between; None where another thing is.

        None also where that output or what is behind the pair has another reader.
        """
        if len(self.read_by[pair.tensor]) > 1 or len(self.read_by.get(pair.result, [])) > 1:
            return None
        node = self.made_by.get(pair.tensor)
        if node is not None and node.op_type == "Add" and any(name in self._constants for name in node.input):
            (name,) = (name for name in node.input if name not in self._constants)
            node = self.made_by.get(name) if len(self.read_by[name]) == 1 else None
        return node if node is not None and node.op_type in LAYER_OPERATORS else None

    def layers_above(self, name: str) -> set[str]:
        """The names of all layers that a tensor depends on."""
        waiting, seen, layers = [name], set[str](), set[str]()
        while waiting:
            tensor = waiting.pop()
            node = None if tensor in seen else self.made_by.get(tensor)
            seen.add(tensor)
            if node is not None:
                waiting.extend(node.input)
                if node.op_type in LAYER_OPERATORS:
                    layers.add(node.name)
        return layers


def _unwanted(pairs: _Pairs) -> Iterator[_Pair]:
    before_additions = {each.result for node in pairs.graph.node if (each := _fused_addend(pairs, node)) is not None}
    for pair in pairs.by_result.values():
        if not pairs.is_wanted(pair) or pair.result in before_additions or _is_rounded_when_joined(pairs, pair):
            yield pair


def _fused_addend(pairs: _Pairs, node: "NodeProto") -> _Pair | None:
    """The addend that a layer makes and that the layer's kernel adds to the other one.

    Where layers make both, it is the one of the longer branch: the shorter one, a projection, is the skip.
    """
    joined = pairs.joined(node) if node.op_type == "Add" else []
    made = [pair for pair in joined if pairs.layer_before(pair) is not None]
    if len(joined) < 2 or not made:
        return None
    depths = {pair.result: len(pairs.layers_above(pair.tensor)) for pair in made}
    return max(made, key=lambda pair: depths[pair.result])


def _is_rounded_when_joined(pairs: _Pairs, pair: _Pair) -> bool:
    """Whether concatenations alone read it, which are quantized behind: their one grid is then that of all inputs."""
    read_by = pairs.read_by.get(pair.result, [])
    return bool(read_by) and all(node.op_type == "Concat" and _is_quantized_behind(pairs, node) for node in read_by)


def _is_quantized_behind(pairs: _Pairs, node: "NodeProto") -> bool:
    read_by = pairs.read_by.get(node.output[0], [])
    return bool(read_by) and all(reader.op_type == "QuantizeLinear" for reader in read_by)


def _leave_out(graph: "GraphProto", pair: _Pair) -> None:
    """Let the pair's readers read what it quantizes."""
    outputs = {value.name for value in graph.output}
    old, new = pair.result, pair.tensor
    graph.node.remove(pair.quantizer)
    graph.node.remove(pair.dequantizer)
    if old in outputs:
        # An output keeps its name, so its maker takes that over.
        old, new = new, old
        for node in graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _drop_axes(graph: "GraphProto") -> None:
    """Take the axis off quantizers with one scale, which the exporter writes though it means nothing there."""
    scalars = {name for name, tensor in initializers(graph).items() if not tensor.dims}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in scalars:
            kept = [attribute for attribute in node.attribute if attribute.name != "axis"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _concatenations(pairs: _Pairs) -> Iterator[str]:
    for node in pairs.graph.node:
        if node.op_type != "Concat":
            continue
        scales = {pair.quantizer.input[1] for name in node.input if (pair := pairs.of(name)) is not None}
        scales |= {each.input[1] for each in pairs.read_by.get(node.output[0], []) if each.op_type == "QuantizeLinear"}
        if len(scales) > 1:
            yield f"{node.name}: its inputs lie on {len(scales)} grids, so their codes are computed anew to be joined"
