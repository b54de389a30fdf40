"""Facts about graphs in 16 bits: what is cast, what stays in float32 and why, and what the CPU makes of them."""

from collections import Counter
from collections.abc import Callable, Mapping

import onnx
import pytest
import torch

from potstill.export.deliver import BuiltEngine
from potstill.export.half import in_half
from potstill.export.proof import Unoptimised, measured_ranges
from potstill.export.sixteen_bits import Half
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError

CONSTANTS = "float[4,4] w = {0.5,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float small = {1e-9}, float large = {1e6}"
QUANTIZED = "float s = {0.1}, int8 z = {0}, int8[4,4] c = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float cs = {0.01}"


def graph(body: str, constants: str = CONSTANTS) -> onnx.ModelProto:
    """From `x` (N, 4) to `y`, its nodes called by their outputs."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> halves (float[N,4] x) => (float[N,4] y) <{constants}> {{ {body} }}'
    )
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def kept(body: str, half: Half = "fp16", ranges: Mapping[str, float] | None = None) -> dict[str, str]:
    return {each.node: each.reason for each in in_half(graph(body), half, ranges or {}).kept}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


class TestWhatIsCast:
    @pytest.mark.parametrize("half", ["fp16", "bf16"])
    def test_constants_and_everything_between_the_edges(self, half: Half) -> None:
        model = in_half(graph("a = MatMul(x, w) y = Relu(a)"), half, {}).model
        assert operators(model) == ["Cast", "MatMul", "Relu", "Cast"]
        wanted = onnx.TensorProto.FLOAT16 if half == "fp16" else onnx.TensorProto.BFLOAT16
        assert [tensor.data_type for tensor in model.graph.initializer] == [wanted]
        assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}

    def test_a_tensor_that_is_read_often_is_cast_once(self) -> None:
        model = in_half(graph("a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b)"), "fp16", {}).model
        assert operators(model) == ["Cast", "MatMul", "MatMul", "Add", "Cast"]

    def test_no_cast_stands_between_codes_and_a_layer(self) -> None:
        body = """
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  k = DequantizeLinear(c, cs, z)
            a = MatMul(d, k)  b = Softmax(d)  e = Add(a, b)
            eq = QuantizeLinear(e, s, z)  ed = DequantizeLinear(eq, s, z)  y = MatMul(ed, k)
        """
        model = in_half(graph(body, QUANTIZED), "fp16", {}).model
        # The softmax has a dequantizer of its own in float32; the casts are around the addition and at the end.
        assert Counter(operators(model)) == Counter(
            {"QuantizeLinear": 2, "DequantizeLinear": 4, "MatMul": 2, "Softmax": 1, "Add": 1, "Cast": 2}
        )
        made_by = {name: node for node in model.graph.node for name in node.output}
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        assert all(made_by[name].op_type == "DequantizeLinear" for node in products for name in node.input)
        kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert (kinds["s"], kinds["s:fp16"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        assert values["s"] == values["s:fp16"]

    def test_a_graph_within_a_graph_is_refused(self) -> None:
        model = graph("y = Relu(x)")
        inner = onnx.helper.make_graph([], "body", [], [])
        model.graph.node.append(
            onnx.helper.make_node("If", ["x"], ["z"], "branch", then_branch=inner, else_branch=inner)
        )
        with pytest.raises(ExportError, match=r"branch holds a graph within.*take fp16 out"):
            in_half(model, "fp16", {})


class TestWhatStaysInFloat:
    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("y = Softmax(x)", "exponentials"),
            ("a = ReduceMean<keepdims = 1>(x) y = Add(x, a)", "long sums"),
            ("y = Mul(x, large)", "its constant reaches 1e+06; fp16 ends at 65504"),
            ("y = Add(x, small)", "its constant 1e-09 would become 0"),
        ],
    )
    def test_says_why(self, body: str, reason: str) -> None:
        (found,) = kept(body).values()
        assert reason in found

    def test_bfloat16_reaches_as_far_as_float32(self) -> None:
        assert kept("y = Mul(x, large)", "bf16") == {}
        assert kept("y = MatMul(x, w)", "bf16", {"y": 1e30}) == {}

    @pytest.mark.parametrize(("largest", "stays"), [(30_000.0, False), (40_000.0, True), (float("inf"), True)])
    def test_what_was_measured_near_the_end_of_the_range_stays(self, largest: float, stays: bool) -> None:
        found = kept("a = MatMul(x, w) y = Relu(a)", ranges={"a": largest})
        assert set(found) == ({"a", "y"} if stays else set())
        assert all("were measured" in reason for reason in found.values())

    def test_a_layer_whose_scales_fp16_does_not_hold(self) -> None:
        body = (
            "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) k = DequantizeLinear(c, cs, z) y = MatMul(d, k)"
        )
        half = in_half(graph(body, QUANTIZED.replace("cs = {0.01}", "cs = {1e-7}")), "fp16", {})
        assert [(each.node, "scales down to 1e-07" in each.reason) for each in half.kept] == [("y", True)]
        assert "Cast" not in operators(half.model)

    def test_reasons_are_told_together(self) -> None:
        half = in_half(graph("a = Softmax(x) y = Softmax(a)"), "fp16", {})
        assert half.in_words() == ("stay in float32: a, y (exponentials soon leave 16 bits)",)


def test_ranges_are_the_largest_values_on_training_samples(data: Dataset) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 21]>
        ranges (float[N,1,16,16] image) => (float[N,1,16,16] y) <float c = {-3.0}, float zero = {0.0}>
        { a = Mul(image, c)  b = Div(a, zero)  y = Relu(a) }
        """
    )
    images = data.train.batch(torch.arange(len(data.train))).inputs["image"]
    found = measured_ranges(model, data)
    assert 0.7 * float(images.abs().max()) < found["image"] <= float(images.abs().max())
    assert found["a"] == pytest.approx(3 * found["image"])
    assert found["b"] > 1e38


def test_a_graph_that_cannot_run_as_written_is_refused() -> None:
    model = graph("y = Relu(x)")
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="cannot run the graph as it is written"):
        Unoptimised(model)


def test_an_engine_in_fp16_is_half_as_large_and_says_in_what_it_computes(
    built: Callable[[Artifact, str], BuiltEngine], float_artifact: Artifact, float_engine: BuiltEngine
) -> None:
    engine = built(float_artifact, "fp16")
    assert engine.file_bytes < 0.6 * float_engine.file_bytes
    assert 1e-6 < engine.parity.max_relative < 5e-3
    kernels, *stay = engine.remarks
    # Which of the two depends on the processor.
    assert (
        "none of its 10 convolutions" in kernels or "of its 10 convolutions and linear layers are computed" in kernels
    )
    assert stay == ["stay in float32: pool/ReduceMean (long sums lose digits in 16 bits)"]
