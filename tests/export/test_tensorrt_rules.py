"""Facts about the rules of TensorRT: a sound graph breaks none, and each way to break one is named."""

import onnx
import pytest

from potstill.export.dialects.tensorrt_rules import demand_placement, placement_problems
from potstill.pipeline.errors import ExportError

SOUND = """
    <ir_version: 10, opset_import: ["": 21]>
    residual (float[N,4,4,4] x) => (float[N,4,4,4] y)
    <float s = {0.1}, int8 z = {0}, int8[4,4,1,1] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1},
     float[4] ws = {0.1,0.2,0.3,0.4}, int8[4] wz = {0,0,0,0}, float[4] b = {0.0,0.0,0.0,0.0}, int8[4] bc = {1,1,1,1}>
    {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        k = DequantizeLinear<axis = 0>(w, ws, wz)
        c = Conv(d, k, b)
        r = Add(c, d)
        y = Relu(r)
    }
"""


def problems(*changes: tuple[str, str]) -> list[str]:
    """Of the sound graph with some text replaced."""
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    model = onnx.parser.parse_model(text)
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}/{node.op_type}"
    return placement_problems(model)


def test_a_sound_graph_has_no_problems() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([("int8 z = {0}", "int8 z = {3}")], "0/QuantizeLinear: the zero point must be 0"),
        ([("int8 z = {0}", "uint8 z = {0}")], "0/QuantizeLinear: its codes are UINT8; they must be INT8"),
        ([("float s = {0.1}", "float s = {0.0}")], "0/QuantizeLinear: every scale must be above 0"),
        ([("QuantizeLinear(x, s, z)", "QuantizeLinear(x, s)")], "scale and zero point must be written out"),
        ([("<axis = 0>", "<axis = 1>")], "2/DequantizeLinear: a weight has one scale an output channel, axis 0, not 1"),
        (
            [("(x, s, z)", "(x, ws, wz)"), ("(q, s, z)", "(q, ws, wz)")],
            "an activation has one scale, not one a channel",
        ),
        ([("Conv(d, k, b)", "Conv(x, k, b)")], "3/Conv: its weight is quantized and its input is not"),
        (
            [("c = Conv(d, k, b)", "bd = DequantizeLinear(bc, s, z)\n c = Conv(d, k, bd)")],
            "4/Conv: its bias must stay in float",
        ),
        ([("Add(c, d)", "Add(c, x)")], "4/Add: the skip is not quantized"),
        (
            [("r = Add(c, d)", "e = QuantizeLinear(x, s, z)\n f = DequantizeLinear(e, s, z)\n r = Add(c, f)")],
            "4/QuantizeLinear: 0/QuantizeLinear quantizes the same tensor",
        ),
        (
            [("r = Add(c, d)", "cq = QuantizeLinear(c, s, z)\n cd = DequantizeLinear(cq, s, z)\n r = Add(cd, d)")],
            "6/Add: there is a quantizer between it and the layer before",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_a_rule_is_named(changes: list[tuple[str, str]], told: str) -> None:
    assert any(told in problem for problem in problems(*changes)), problems(*changes)


def test_a_scale_of_another_type_than_the_data_is_named() -> None:
    model = onnx.parser.parse_model(SOUND)
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "s")
    halved = onnx.numpy_helper.to_array(scale).astype("float16")
    scale.CopyFrom(onnx.numpy_helper.from_array(halved, "s"))
    assert any("another type than the data" in problem for problem in placement_problems(model))


def test_a_transposed_convolution_has_its_scales_on_the_second_axis() -> None:
    transposed = ("Conv(d, k, b)", "ConvTranspose(d, k, b)")
    assert problems(transposed, ("<axis = 0>", "<axis = 1>")) == []
    assert any("axis 1, not 0" in problem for problem in problems(transposed))


def test_all_problems_are_raised_at_once_with_what_to_do() -> None:
    model = onnx.parser.parse_model(SOUND.replace("int8 z = {0}", "uint8 z = {7}"))
    with pytest.raises(ExportError, match=r"(?s)UINT8.*zero point must be 0.*Mend.*grids: symmetric"):
        demand_placement(model)
