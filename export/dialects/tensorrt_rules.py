"""What TensorRT's explicit quantization demands of a graph (NvInfer.h, IQuantizeLayer; the guide to Q/DQ placement)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ...pipeline.errors import ExportError
from .graph import LAYER_OPERATORS, initializers, makers, readers

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def placement_problems(model: "ModelProto") -> list[str]:
    """Every place where the graph breaks a rule, in words; empty for a graph that TensorRT takes and fuses."""
    graph = _Graph(model)
    return [
        problem
        for node in model.graph.node
        for problem in (*graph.grid_problems(node), *graph.layer_problems(node), *graph.addition_problems(node))
    ]


def demand_placement(model: "ModelProto") -> None:
    """Raise ExportError with every broken rule."""
    problems = placement_problems(model)
    if problems:
        named = "".join(f"  {problem}\n" for problem in problems)
        raise ExportError(
            f"the quantized graph breaks rules of TensorRT:\n{named}"
            "Mend: set `grids: symmetric` in the quantize stage; where that does not help, leave these layers in float "
            "by its `ignore:`."
        )


class _Graph:
    def __init__(self, model: "ModelProto") -> None:
        import onnx

        self._constants: Mapping[str, TensorProto] = initializers(model.graph)
        self._made_by: Mapping[str, NodeProto] = makers(model.graph)
        self._read_by: Mapping[str, list[NodeProto]] = readers(model.graph)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        self._types = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types |= {name: tensor.data_type for name, tensor in self._constants.items()}

    def grid_problems(self, node: "NodeProto") -> Iterator[str]:
        """Of one quantizer or dequantizer."""
        if node.op_type not in QUANTIZERS:
            return
        if len(node.input) < 3 or node.input[1] not in self._constants or node.input[2] not in self._constants:
            yield f"{node.name}: scale and zero point must be written out as constants"
            return
        yield from self._code_problems(node)
        yield from self._scale_problems(node)
        others = [each for each in self._read_by[node.input[0]] if each.op_type == "QuantizeLinear"]
        if node.op_type == "QuantizeLinear" and others[0] is not node:
            yield f"{node.name}: {others[0].name} quantizes the same tensor; all its readers must share one"

    def _code_problems(self, node: "NodeProto") -> Iterator[str]:
        import onnx

        zero_points = self._constants[node.input[2]]
        if zero_points.data_type not in (onnx.TensorProto.INT8, onnx.TensorProto.FLOAT8E4M3FN):
            kind = onnx.TensorProto.DataType.Name(zero_points.data_type)
            yield f"{node.name}: its codes are {kind}; they must be INT8 or FLOAT8E4M3FN"
        if onnx.numpy_helper.to_array(zero_points).any():
            yield f"{node.name}: the zero point must be 0"

    def _scale_problems(self, node: "NodeProto") -> Iterator[str]:
        import onnx

        scales = self._constants[node.input[1]]
        values = onnx.numpy_helper.to_array(scales)
        if not (values > 0).all():
            yield f"{node.name}: every scale must be above 0"
        data = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
        if self._types.get(data, scales.data_type) != scales.data_type:
            yield f"{node.name}: its scale has another type than the data"
        if not values.ndim:
            return
        if not self._is_weight(node):
            yield f"{node.name}: an activation has one scale, not one a channel"
            return
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        layers = self._behind(node.output[0])
        wanted = 1 if layers and all(each.op_type == "ConvTranspose" for each in layers) else 0
        if axis != wanted:
            yield f"{node.name}: a weight has one scale an output channel, axis {wanted}, not {axis}"

    def _is_weight(self, node: "NodeProto") -> bool:
        name = node.input[0]
        while name not in self._constants:
            maker = self._made_by.get(name)
            if maker is None or maker.op_type not in QUANTIZERS:
                return False
            name = maker.input[0]
        return True

    def _behind(self, name: str) -> "list[NodeProto]":
        """Who reads a tensor, transpositions and other quantizers passed over."""
        found = list["NodeProto"]()
        for node in self._read_by.get(name, []):
            passed = node.op_type in ("Transpose", *QUANTIZERS)
            found += self._behind(node.output[0]) if passed else [node]
        return found

    def layer_problems(self, node: "NodeProto") -> Iterator[str]:
        """Of one layer: where its weight is quantized its input is, too, and its bias never is."""
        if node.op_type not in LAYER_OPERATORS:
            return
        data, weight = (self._dequantizer(name) is not None for name in node.input[:2])
        if weight and not data:
            yield f"{node.name}: its weight is quantized and its input is not"
        if len(node.input) > 2 and self._dequantizer(node.input[2]) is not None:
            yield f"{node.name}: its bias must stay in float"

    def addition_problems(self, node: "NodeProto") -> Iterator[str]:
        """Of an addition that a layer's kernel is to take in."""
        if node.op_type != "Add":
            return
        addends = [name for name in node.input if name not in self._constants]
        if len(addends) < 2:
            return
        direct = [name for name in addends if self._quantized_layer(name)]
        rounded = [name for name in addends if (codes := self._dequantizer(name)) and self._alone_rounded(codes)]
        if rounded and not direct:
            yield f"{node.name}: there is a quantizer between it and the layer before, which then do not fuse"
        if direct and not any(self._dequantizer(name) for name in addends):
            yield f"{node.name}: the skip is not quantized, which makes the fused output float"

    def _alone_rounded(self, dequantizer: "NodeProto") -> bool:
        """Whether it follows a layer's quantizer, and nothing else reads either of them."""
        quantizer = self._made_by.get(dequantizer.input[0])
        if quantizer is None or len(self._read_by.get(dequantizer.output[0], [])) > 1:
            return False
        return self._quantized_layer(quantizer.input[0])

    def _quantized_layer(self, name: str) -> bool:
        """Whether a quantized layer makes the tensor for one reader alone, with nothing but a bias added."""
        if len(self._read_by.get(name, [])) > 1:
            return False
        node = self._made_by.get(name)
        if node is not None and node.op_type == "Add" and any(each in self._constants for each in node.input):
            return any(self._quantized_layer(each) for each in node.input if each not in self._constants)
        return node is not None and node.op_type in LAYER_OPERATORS and self._dequantizer(node.input[0]) is not None

    def _dequantizer(self, name: str) -> "NodeProto | None":
        """What dequantizes a tensor, movements passed over; None where nothing does."""
        node = self._made_by.get(name)
        while node is not None and node.op_type == "Transpose":
            node = self._made_by.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None
