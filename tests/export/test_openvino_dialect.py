"""Facts about the graphs that OpenVINO is given: no zero points where none are needed, and the same numbers."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from potstill.export.dialects import for_openvino, initializers, is_in_groups
from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.export.parity import numpy_inputs
from potstill.export.proof import Unoptimised
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset

GRIDS = "float s = {0.1}, uint8 z = {128}, uint8 other = {90}"


def graph(body: str, constants: str = GRIDS) -> onnx.ModelProto:
    """From `x` (N, 4) to `y`."""
    return onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> forms (float[N,4] x) => (float[N,4] y) <{constants}> {{ {body} }}'
    )


def zero_points(model: onnx.ModelProto) -> Counter[tuple[str, int]]:
    """Type and value of each quantizer's."""
    constants = initializers(model.graph)
    used = (to_array(constants[node.input[2]]) for node in model.graph.node if node.op_type == "QuantizeLinear")
    return Counter((values.dtype.name, int(values)) for values in used)


def test_codes_of_symmetric_grids_have_zero_points_of_0_and_others_stay() -> None:
    body = """
        a = Relu(x)  aq = QuantizeLinear(a, s, z)  ad = DequantizeLinear(aq, s, z)
        b = Tanh(ad)  bq = QuantizeLinear(b, s, z)  bd = DequantizeLinear(bq, s, z)
        c = Sin(bd)  cq = QuantizeLinear(c, s, other)  y = DequantizeLinear(cq, s, other)
    """
    model = graph(body)
    form = for_openvino(model)
    assert zero_points(form) == {("uint8", 0): 1, ("int8", 0): 1, ("uint8", 90): 1}
    inputs = {"x": np.linspace(-20, 12, 40, dtype=np.float32).reshape(10, 4)}
    assert np.array_equal(Unoptimised(form).run(inputs)["y"], Unoptimised(model).run(inputs)["y"])


def test_what_lies_on_its_grid_already_is_not_quantized_again() -> None:
    body = """
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  t = Transpose(d)
        tq = QuantizeLinear(t, s, z)  td = DequantizeLinear(tq, s, z)  u = Transpose(td)
        uq = QuantizeLinear(u, s, other)  y = DequantizeLinear(uq, s, other)
    """
    model = graph(body)
    form = for_openvino(model)
    assert sum(node.op_type == "QuantizeLinear" for node in form.graph.node) == 2
    inputs = {"x": np.linspace(-20, 12, 40, dtype=np.float32).reshape(10, 4)}
    assert np.array_equal(Unoptimised(form).run(inputs)["y"], Unoptimised(model).run(inputs)["y"])


@pytest.mark.parametrize(("reader", "quantizers"), [("Relu(kd)", 3), ("MatMul(kd, w)", 4)])
def test_a_concatenation_keeps_the_grids_of_what_it_joins_unless_a_layer_reads_it(reader: str, quantizers: int) -> None:
    body = f"""
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        p = QuantizeLinear(x, s, other)  e = DequantizeLinear(p, s, other)
        k = Concat<axis = 0>(d, e)  kq = QuantizeLinear(k, s, z)  kd = DequantizeLinear(kq, s, z)
        a = {reader}  aq = QuantizeLinear(a, s, z)  y = DequantizeLinear(aq, s, z)
    """
    model = graph(body)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    form = for_openvino(model)
    assert sum(node.op_type == "QuantizeLinear" for node in form.graph.node) == quantizers


@pytest.mark.parametrize("norm", ["LayerNormalization(t, g, h)", "Tanh(t)"])
def test_norms_read_values_and_not_codes(norm: str) -> None:
    body = f"""
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  t = Identity(d)
        n = {norm}  nq = QuantizeLinear(n, s, z)  y = DequantizeLinear(nq, s, z)
    """
    model = graph(body, f"{GRIDS}, float[4] g = {{1.0, 2.0, 3.0, 4.0}}, float[4] h = {{0.0, 0.0, 0.5, 0.0}}")
    form = for_openvino(model)
    assert sum(node.op_type == "Max" for node in form.graph.node) == norm.startswith("LayerNormalization")
    inputs = {"x": np.linspace(-3, 3, 40, dtype=np.float32).reshape(10, 4)}
    assert np.array_equal(Unoptimised(form).run(inputs)["y"], Unoptimised(model).run(inputs)["y"])


@pytest.mark.parametrize(("inputs", "groups", "taps"), [(80, 2, 2), (128, 2, 1), (40, 2, 1), (80, 1, 1)])
def test_points_in_groups_get_a_tap_of_zeros_where_the_last_tile_is_not_full(
    inputs: int, groups: int, taps: int
) -> None:
    channels = inputs * groups
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 21]>
        points (float[N,{channels},5,5] x) => (float[N,6,5,5] y, float[N,6,5,5] again)
        <float s = {{0.1}}, uint8 z = {{128}}>
        {{
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
            w = DequantizeLinear<axis = 0>(codes, scale, zero)
            y = Conv<group = {groups}, kernel_shape = [1, 1], pads = [0, 0, 0, 0]>(d, w)
            again = Conv<group = {groups}, kernel_shape = [1, 1], pads = [0, 0, 0, 0]>(d, w)
        }}
        """
    )
    draws = np.random.default_rng(0)
    weights = {
        "codes": draws.integers(-127, 128, (6, inputs, 1, 1), np.int8),
        "scale": draws.uniform(0.01, 0.1, 6).astype(np.float32),
        "zero": np.zeros(6, np.int8),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in weights.items())
    form = for_openvino(model)
    kernels = [list(each.ints) for node in form.graph.node for each in node.attribute if each.name == "kernel_shape"]
    assert kernels == [[1, taps], [1, taps]]
    x = draws.uniform(-12, 12, (3, channels, 5, 5)).astype(np.float32)
    theirs, ours = (Unoptimised(each).run({"x": x}) for each in (model, form))
    for name in ("y", "again"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-3)


def test_biases_are_additions_and_weights_products_and_the_layers_keep_their_names(
    int8_artifact: Artifact, data: Dataset, metadata: OnnxMetadata
) -> None:
    model = exported(int8_artifact, "int8", data.example(), metadata)
    form = for_openvino(model)
    layers = {node.name: len(node.input) for node in form.graph.node if node.op_type == "Conv"}
    assert layers == {node.name: 2 for node in model.graph.node if node.op_type == "Conv"}
    assert sum(node.name.endswith("/Conv|Add") for node in form.graph.node) == len(layers)
    assert sum(node.op_type == "Mul" for node in form.graph.node) == len(layers) + 1
    inputs = numpy_inputs(data.example(4))
    theirs, ours = (Unoptimised(each).run(inputs)["logits"] for each in (model, form))
    assert np.abs(ours - theirs).mean() < 0.01 * theirs.std()


def test_an_exported_network_on_symmetric_grids_computes_the_same(
    symmetric_artifact: Artifact, data: Dataset, metadata: OnnxMetadata
) -> None:
    model = exported(symmetric_artifact, "int8", data.example(), metadata)
    form = for_openvino(model)
    assert {zero for _, zero in zero_points(form)} == {0}
    inputs = numpy_inputs(data.example(4))
    theirs, ours = (Unoptimised(each).run(inputs)["logits"] for each in (model, form))
    # Behind a ReLU, values above the largest that was calibrated for have codes of their own.
    assert np.abs(ours - theirs).mean() < 0.01 * theirs.std()


@pytest.mark.parametrize("zero", ["z", "other"])
def test_a_constant_is_rounded_beforehand(zero: str) -> None:
    body = f"""
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
        cq = QuantizeLinear(c, s, {zero})  cd = DequantizeLinear(cq, s, {zero})
        y = Add(d, cd)
    """
    model = graph(body, f"{GRIDS}, float[4] c = {{0.17, -0.25, 99.0, -99.0}}")
    form = for_openvino(model)
    assert [node.op_type for node in form.graph.node] == ["QuantizeLinear", "DequantizeLinear", "Add"]
    inputs = {"x": np.zeros((1, 4), np.float32)}
    assert np.array_equal(Unoptimised(form).run(inputs)["y"], Unoptimised(model).run(inputs)["y"])


def test_a_constant_that_is_expanded_is_rounded_beforehand() -> None:
    body = """
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  n = Shape<start = 0, end = 1>(x)
        shape = Concat<axis = 0>(n, four)  e = Expand(c, shape)
        eq = QuantizeLinear(e, s, other)  ed = DequantizeLinear(eq, s, other)  y = Add(d, ed)
    """
    model = graph(body, f"{GRIDS}, int64[1] four = {{4}}, float[1,4] c = {{0.17, -0.25, 99.0, -99.0}}")
    form = for_openvino(model)
    assert sum(node.op_type == "QuantizeLinear" for node in form.graph.node) == 1
    inputs = {"x": np.zeros((3, 4), np.float32)}
    assert np.array_equal(Unoptimised(form).run(inputs)["y"], Unoptimised(model).run(inputs)["y"])


@pytest.mark.parametrize(("width", "stays"), [(32, True), (40, False)])
def test_weights_in_groups_that_do_not_divide_the_inputs_become_float(width: int, stays: bool) -> None:
    groups = -(-width // 32)
    draws = np.random.default_rng(0)
    weights = {
        "codes": draws.integers(0, 256, (4, width), np.uint8),
        "scale": draws.uniform(0.01, 0.1, (4, groups)).astype(np.float32),
        "zero": draws.integers(0, 256, (4, groups), np.uint8),
    }
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 21]>
        groups (float[N,{width}] x) => (float[N,4] y)
        {{
            w = DequantizeLinear<axis = 1, block_size = 32>(codes, scale, zero)
            y = Gemm<transB = 1>(x, w)
        }}
        """
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in weights.items())
    form = for_openvino(model)
    assert any(map(is_in_groups, form.graph.node)) == stays
    spread_scale, spread_zero = (np.repeat(weights[name], 32, 1)[:, :width] for name in ("scale", "zero"))
    wanted = (weights["codes"].astype(np.float32) - spread_zero) * spread_scale
    x = draws.standard_normal((3, width), np.float32)
    assert Unoptimised(form).run({"x": x})["y"] == pytest.approx(x @ wanted.T, rel=1e-4, abs=1e-3)
