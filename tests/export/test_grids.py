"""Facts about symmetric grids: every runtime can hold them, and the engine for the CPU still fuses every layer."""

from collections import Counter
from collections.abc import Callable

import onnx
import pytest

from potstill.export.deliver import BuiltEngine
from potstill.export.dialects import for_onnxruntime_cpu
from potstill.export.dialects.grids import rectified_from_zero
from potstill.export.dialects.tensorrt import for_tensorrt
from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError


def test_every_layer_on_symmetric_grids_runs_in_int8_on_the_cpu(
    symmetric_artifact: Artifact, built: Callable[[Artifact, str], BuiltEngine]
) -> None:
    engine = built(symmetric_artifact, "int8")
    assert engine.audit is not None
    assert engine.audit.int8_share == 1
    quantization = symmetric_artifact.quantization
    assert quantization is not None
    assert {grid.zero_point for grid in quantization.activations.values()} == {128}
    assert engine.parity.mean_relative < 0.02


def test_affine_grids_are_refused_by_name_where_int8_is_to_hold_them(
    int8_artifact: Artifact, data: Dataset, metadata: OnnxMetadata
) -> None:
    model = exported(int8_artifact, "int8", data.example(), metadata)
    with pytest.raises(ExportError, match=r"(?s)layer1.0.relu1/Relu:out.* more tensors.*grids: symmetric"):
        for_tensorrt(model)


def moving(first: str) -> onnx.ModelProto:
    """Two operators on symmetric grids: one of the test's, then a max pooling and a sum with itself."""
    return onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 21]>
        moving (float[N,4,4,4] x) => (float[N,4,2,2] y)
        <float s = {{0.1}}, uint8 z = {{128}}, float low = {{0.0}}, float below = {{-1.0}}>
        {{
            a = {first}
            aq = QuantizeLinear(a, s, z)
            ad = DequantizeLinear(aq, s, z)
            b = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(ad)
            bq = QuantizeLinear(b, s, z)
            bd = DequantizeLinear(bq, s, z)
            c = Add(bd, bd)
            cq = QuantizeLinear(c, s, z)
            y = DequantizeLinear(cq, s, z)
        }}
        """
    )


@pytest.mark.parametrize(
    ("first", "from_zero"), [("Relu(x)", 4), ("Clip(x, low)", 4), ("Clip(x, below)", 0), ("Sigmoid(x)", 0)]
)
def test_codes_start_at_zero_behind_a_rectifier_and_where_its_values_are_moved(first: str, from_zero: int) -> None:
    model = moving(first)
    rectified_from_zero(model.graph)
    zero_points = Counter(node.input[2] for node in model.graph.node if node.op_type.endswith("Linear"))
    assert zero_points == Counter({"zero_point:uint8": from_zero, "z": 6 - from_zero}) - Counter()
    assert for_onnxruntime_cpu(moving(first)).graph.node
