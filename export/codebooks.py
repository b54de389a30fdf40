"""Weights that share values, written into an ONNX file as a codebook and packed numbers.

The operators that unpack them read nothing but constants, so a runtime computes each weight once, when it loads the
file: ONNX Runtime's optimised graph is that of the float weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..pipeline.errors import ExportError
from ..pipeline.sharing import SharedWeight, codebook_of, planes, shared_weights

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

READERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather"})
"""The operators that torch makes of the layers whose weights can share values."""
ROUNDING = 1e-5
"""By how much of its largest value a weight may differ from what its codebook gives: a few roundings of float32."""

UNPACKED = "unpacked:"
"""Begins the names of what the operators make on the way to a weight."""

_Floats = NDArray[np.float32]


def with_codebooks(model: "ModelProto", network: nn.Module) -> None:
    """Replace, in place, each weight that shares values in `network` by the operators that make it of its codebook.

    Raises ExportError where the exporter made something of a weight that its codebook does not give.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    unpacking = _Unpacking()
    for path, shared in shared_weights(network).items():
        codebook = codebook_of(network.get_submodule(path)).numpy()
        name, transposed = _exported_weight(path, graph.node, constants)
        factors = _factors(
            path, codebook[shared.numbers.numpy()].reshape(shared.shape), constants[name], transposed=transposed
        )
        unpacking.write(path, shared, codebook, factors, transposed=transposed, result=name)
        graph.initializer.remove(constants[name])
    graph.initializer.extend(unpacking.constants.values())
    nodes = [*unpacking.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def with_floats(model: "ModelProto") -> "ModelProto":
    """A copy with float weights in place of codebooks, for a runtime that has no operators on bits."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    unpacking = [node for node in graph.node if node.output[0].startswith(UNPACKED) or _ends_unpacking(node)]
    made = {name for node in unpacking for name in node.output}
    rest = [node for node in graph.node if node.output[0] not in made]
    _put(copy, unpacking, rest, sorted(made & {name for node in rest for name in node.input}))
    return copy


def with_whole_numbers(model: "ModelProto") -> "ModelProto":
    """A copy with a byte for the number of each weight's value, for a runtime that errs in operators on bits."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made_by = {node.output[0]: node for node in copy.graph.node if node.output[0].startswith(UNPACKED)}
    wanted = sorted({node.input[0] for node in made_by.values() if node.op_type == "Cast"} & {*made_by})
    waiting, on_bits = [*wanted], set[str]()
    while waiting:
        name = waiting.pop()
        on_bits.add(name)
        waiting.extend(source for source in made_by[name].input if source in made_by)
    nodes = [node for node in copy.graph.node if node.output[0] in on_bits]
    _put(copy, nodes, [node for node in copy.graph.node if node.output[0] not in on_bits], wanted)
    return copy


def _put(model: "ModelProto", nodes: "Sequence[NodeProto]", rest: "Sequence[NodeProto]", wanted: Sequence[str]) -> None:
    """Leave `rest` of a graph, and constants in place of what `nodes` make of constants for it."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    if not nodes:
        return
    graph = model.graph
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in wanted]
    part = onnx.helper.make_graph(nodes, "weights", [], outputs, graph.initializer)
    alone = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    values = cast(list[NDArray[Any]], ReferenceEvaluator(alone).run(None, {}))  # pyright: ignore[reportUnknownMemberType] - untyped
    del graph.node[:]
    graph.node.extend(rest)
    read = {name for node in rest for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in zip(wanted, values, strict=True)
    )


def _ends_unpacking(node: "NodeProto") -> bool:
    return any(name.startswith(UNPACKED) for name in node.input) and node.op_type in ("Reshape", "Mul", "Transpose")


def _exported_weight(
    path: str, nodes: "Iterable[NodeProto]", constants: "Mapping[str, TensorProto]"
) -> tuple[str, bool]:
    """What the exported graph calls a layer's weight, and whether it is transposed, as a MatMul reads it."""
    for node in nodes:
        if node.op_type in READERS and node.name.rpartition("/")[0] == path:
            # An embedding's Gather has its weight first, a layer its input.
            found = [name for name in node.input[:2] if name in constants]
            if found:
                return found[0], node.op_type == "MatMul"
    raise ExportError(
        f"the weights of `{path}` share values, but in the exported graph no layer of that name reads them as a "
        f"constant. {_MEND}"
    )


def _factors(path: str, weight: _Floats, stored: "TensorProto", *, transposed: bool) -> _Floats | None:
    """By what the exporter multiplied the weight when it folded a batch norm into it; None for nothing.

    The factors lie along one axis, the output channels: the first, or the second of a transposed convolution.
    """
    import onnx

    exported = onnx.numpy_helper.to_array(stored)
    exported = exported.T if transposed else exported
    if exported.shape == weight.shape:
        if _agree(weight, exported):
            return None
        for axis in range(2):
            others = tuple(other for other in range(weight.ndim) if other != axis)
            products = (weight.astype(np.float64) * exported).sum(others, keepdims=True)
            squares = np.square(weight, dtype=np.float64).sum(others, keepdims=True)
            factors = (products / np.where(squares > 0, squares, 1)).astype(np.float32)
            if _agree(weight * factors, exported):
                return factors
    raise ExportError(f"the exported weight of `{path}` is not made of its codebook. {_MEND}")


def _agree(ours: _Floats, exported: _Floats) -> bool:
    return float(np.abs(ours - exported).max()) <= ROUNDING * float(np.abs(exported).max())


_MEND = "Mend: name the layer in the `ignore` of `cluster`."


class _Unpacking:
    """The operators that make the layers' weights, and their constants, equal ones once."""

    def __init__(self) -> None:
        self.constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = {}
        self.nodes: list[NodeProto] = []
        self._path = ""

    def write(
        self,
        path: str,
        shared: SharedWeight,
        codebook: _Floats,
        factors: _Floats | None,
        *,
        transposed: bool,
        result: str,
    ) -> None:
        """Those of one layer; the last one makes the tensor `result`."""
        self._path = path
        weight = self._operator("Gather", [self._constant(codebook), self._numbers(shared)])
        weight = self._operator("Reshape", [weight, self._constant(np.array(shared.shape, np.int64))])
        if factors is not None:
            weight = self._operator("Mul", [weight, self._constant(factors)])
        if transposed:
            self._operator("Transpose", [weight], perm=[1, 0])
        self.nodes[-1].output[0] = result

    def _numbers(self, shared: SharedWeight) -> str:
        """Which value each weight has, put together of the planes' bits."""
        import onnx

        count, packed = shared.shape.numel(), shared.packed.numpy()
        whole = ""
        for plane in planes(count, shared.codebook.bits):
            part = self._constant(packed[plane.start : plane.stop, None])
            if plane.width < 8:
                shifts = self._constant(np.array(plane.shifts, np.uint8))
                part = self._operator("BitShift", [part, shifts], direction="RIGHT")
                part = self._operator("BitwiseAnd", [part, self._constant(np.array(plane.mask, np.uint8))])
            part = self._operator("Reshape", [part, self._constant(np.array([-1], np.int64))])
            if len(plane.shifts) * (plane.stop - plane.start) > count:
                bounds = [self._constant(np.array([bound], np.int64)) for bound in (0, count)]
                part = self._operator("Slice", [part, *bounds])
            if plane.offset:
                offset = self._constant(np.array(plane.offset, np.uint8))
                part = self._operator("BitShift", [part, offset], direction="LEFT")
            whole = self._operator("BitwiseOr", [whole, part]) if whole else part
        return self._operator("Cast", [whole], to=onnx.TensorProto.INT32)

    def _constant(self, values: NDArray[Any]) -> str:
        import onnx

        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self.constants:
            self.constants[key] = onnx.numpy_helper.from_array(
                np.ascontiguousarray(values), f"packed:{len(self.constants)}"
            )
        return self.constants[key].name

    def _operator(self, operator: str, inputs: list[str], **settings: Any) -> str:
        import onnx

        result = f"{UNPACKED}{len(self.nodes)}"
        # A runtime's profile finds the layer by what stands before the last slash.
        name = f"{self._path}/{operator}:{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [result], name=name, **settings))
        return result
