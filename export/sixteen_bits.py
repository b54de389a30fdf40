"""Which operators of a graph 16-bit floats suit, and why the others stay in float32."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from ..pipeline.errors import ExportError
from ..pipeline.front_end import FRONT_END
from .dialects import initializers, makers, readers
from .engine import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Half = Literal["fp16", "bf16"]

LARGEST: Mapping[Half, float] = {"fp16": 65504.0, "bf16": 3.3895e38}
HEADROOM = 2.0
"""Other inputs reach farther than those that were measured."""
SCALE_ERROR = 2.0**-8
"""The relative error that a scale may get by being rounded: that of half a code in 128. bfloat16 makes 2^-9 at most;
float16 may make more below 2^-17."""

SENSITIVE: Mapping[str, str] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Exp", "Pow"), "exponentials soon leave 16 bits"),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization"),
        "sums of squares lose digits in 16 bits",
    ),
    **dict.fromkeys(
        ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "ReduceProd", "CumSum"),
        "long sums lose digits in 16 bits",
    ),
}
"""Operators that stay in float32 whatever their values are, and why."""
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
ATTRIBUTE_TYPED = frozenset({"Constant", "ConstantOfShape", "RandomNormal", "RandomUniform", "EyeLike"})
"""Operators whose output's type is written in an attribute: they stay as they are, and are cast behind."""


def rounded(values: Array, half: Half) -> Array:
    """In the 16-bit type."""
    import numpy as np
    import onnx

    with np.errstate(over="ignore"):
        return values.astype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type(half)))


def onnx_type(half: Half) -> int:
    """ONNX's number for the type."""
    import onnx

    return int(onnx.TensorProto.FLOAT16 if half == "fp16" else onnx.TensorProto.BFLOAT16)


def holds_scales(scales: Array, half: Half) -> bool:
    """Whether rounding to 16 bits leaves every scale nearly what it is."""
    import numpy as np

    return bool(np.abs(rounded(scales, half).astype(np.float64) / scales - 1).max() <= SCALE_ERROR)


def takes(node: "NodeProto", index: int, half: Half, opset: int, *, made: bool = False) -> bool:
    """Whether ONNX lets an input of a node, or an output if `made`, be of the 16-bit type."""
    import onnx

    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    formals = schema.outputs if made else schema.inputs
    formal = formals[min(index, len(formals) - 1)]
    constraints = {each.type_param_str: tuple(each.allowed_type_strs) for each in schema.type_constraints}
    name = "tensor(float16)" if half == "fp16" else "tensor(bfloat16)"
    return name in constraints.get(formal.type_str, (formal.type_str,))


def element_types(model: "ModelProto") -> dict[str, int]:
    """The element type of every tensor."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def reasons_for_float(model: "ModelProto", half: Half, opset: int, ranges: Mapping[str, float]) -> dict[str, str]:
    """Why operators have to stay in float32, by their names.

    `ranges` are the largest absolute values of the tensors on real inputs. Raises ExportError where the graph holds
    graphs within, as loops do.
    """
    fitness = _Fitness(model, half, opset, ranges)
    return {node.name: reason for node in model.graph.node if (reason := fitness.reason(node)) is not None}


def only_for(model: "ModelProto", kept: Mapping[str, str]) -> Iterator[str]:
    """The transpositions that kept operators alone read: a cast behind one would part the codes from their layer."""
    read_by = readers(model.graph)
    for node in model.graph.node:
        behind = read_by.get(node.output[0], []) if node.op_type == "Transpose" else []
        if behind and all(reader.name in kept for reader in behind):
            yield node.name


class _Fitness:
    def __init__(self, model: "ModelProto", half: Half, opset: int, ranges: Mapping[str, float]) -> None:
        import onnx

        self._half: Half = half
        self._opset = opset
        self._ranges = ranges
        self._float = int(onnx.TensorProto.FLOAT)
        self._types = element_types(model)
        self._made_by = makers(model.graph)
        self._constants = {
            name: onnx.numpy_helper.to_array(tensor) for name, tensor in initializers(model.graph).items()
        }
        # By its weights, since a model of the user's own may have a module of that name, too.
        self._has_front_end = f"{FRONT_END}.waves" in self._constants

    def reason(self, node: "NodeProto") -> str | None:
        """Why a node has to stay in float32; None where it need not."""
        import onnx

        if any(each.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for each in node.attribute):
            raise ExportError(
                f"{node.name} holds a graph within, which cannot be cast to {self._half}: write the loop or branch "
                f"without one in the model, or take {self._half} out of the target's precision"
            )
        read = [(index, name) for index, name in enumerate(node.input) if self._types.get(name) == self._float]
        made = [(index, name) for index, name in enumerate(node.output) if self._types.get(name) == self._float]
        if not (read or made) or node.op_type in QUANTIZERS | ATTRIBUTE_TYPED:
            return None
        if self._has_front_end and node.name.partition("/")[0].partition("#")[0] == FRONT_END:
            return "a front end's energies soon leave 16 bits"
        forms = [takes(node, index, self._half, self._opset) for index, _ in read]
        forms += [takes(node, index, self._half, self._opset, made=True) for index, _ in made]
        if not any(forms):
            return f"ONNX has no {self._half} form of {node.op_type} in opset {self._opset}"
        names = [name for _, name in (*read, *made)]
        return SENSITIVE.get(node.op_type) or self._range_problem(names) or self._operand_problem(names)

    def _range_problem(self, names: list[str]) -> str | None:
        largest = max((self._ranges[name] for name in names if name in self._ranges), default=0.0)
        # `not <=` also holds for what is no number.
        if not largest * HEADROOM <= LARGEST[self._half]:
            return f"values up to {largest:.4g} were measured; {self._half} ends at {LARGEST[self._half]:.5g}"
        return None

    def _operand_problem(self, names: list[str]) -> str | None:
        import numpy as np

        for name in names:
            values = self._constants.get(name)
            if values is None:
                scales = self._scales(name)
                if scales is not None and not holds_scales(scales, self._half):
                    return f"its codes have scales down to {scales.min():.3g}, which {self._half} does not hold"
                continue
            largest = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0)
            if largest > LARGEST[self._half]:
                return f"its constant reaches {largest:.4g}; {self._half} ends at {LARGEST[self._half]:.5g}"
            if values.size == 1 and values.all() and not rounded(values, self._half).all():
                return f"its constant {values.item():.3g} would become 0 in {self._half}"
        return None

    def _scales(self, name: str) -> Array | None:
        """Of the dequantizer that a tensor comes from; None for one that comes from none."""
        node = self._made_by.get(name)
        while node is not None and node.op_type == "Transpose":
            node = self._made_by.get(node.input[0])
        return self._constants[node.input[1]] if node is not None and node.op_type == "DequantizeLinear" else None
