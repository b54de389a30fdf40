"""Facts about what the dialects refuse."""

import onnx
import pytest

from potstill.export.dialects import for_onnxruntime_cpu
from potstill.pipeline.errors import ExportError


def product(weight: str) -> onnx.ModelProto:
    """A matrix product of the input with a tensor `w`, which `weight` makes from the constant `c` or the input `x`."""
    return onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 21]>
        product (float[N,4,4] x) => (float[N,4,4] y)
        <float[4,4] c = {{1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}}, float s = {{0.1}}, int8 z = {{0}}>
        {{
            {weight}
            q = QuantizeLinear(w, s, z)
            d = DequantizeLinear(q, s, z)
            y = MatMul(x, d)
        }}
        """
    )


@pytest.mark.parametrize("weight", ["w = Identity(c)", "w = Transpose(c)"])
def test_a_weight_that_is_quantized_at_run_time_is_refused(weight: str) -> None:
    with pytest.raises(ExportError, match="quantized at run time instead of stored as int8"):
        for_onnxruntime_cpu(product(weight))


def test_a_product_of_two_activations_is_none_of_those() -> None:
    (kept,) = (node for node in for_onnxruntime_cpu(product("w = Relu(x)")).graph.node if node.op_type == "MatMul")
    assert list(kept.input) == ["x", "d"]
