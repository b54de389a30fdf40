"""Facts about fp8: the codes are E4M3's nearest, the graph computes what the model does so, and it is proven to."""

from typing import cast

import numpy as np
import onnx
import pytest
import torch

from potstill.export.deliver import OnnxMetadata
from potstill.export.dialects.tensorrt import for_tensorrt
from potstill.export.proof import proof_of, unrounded_activations
from potstill.export.tensorrt.e4m3 import (
    Weight,
    codes_of,
    in_e4m3,
    left_in_float,
    original_weights,
    without_kernels,
)
from potstill.export.tensorrt.e4m3_reference import turn_to_e4m3
from potstill.export.tensorrt_file import quantized_model
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError
from potstill.pipeline.fake_quantization import FakeQuantizedModel


def parameters(artifact: Artifact) -> dict[str, np.ndarray]:
    assert artifact.quantization is not None
    state = artifact.model.state_dict()
    return {name: state[name].numpy() for name in artifact.quantization.weights}


@pytest.fixture(scope="session")
def weights(int8_graph: onnx.ModelProto, symmetric_artifact: Artifact) -> dict[str, Weight]:
    """Of the residual network, whose codes have 7 bits."""
    return original_weights(int8_graph, parameters(symmetric_artifact), 63)


class TestCodes:
    def test_are_torch_s_nearest_and_end_at_448(self) -> None:
        values = torch.linspace(-600, 600, 4001)
        found = codes_of(values.numpy(), np.asarray(1, np.float32)).astype(np.float32)
        nearest = values.clamp(-448, 448).to(torch.float8_e4m3fn).float().numpy()
        assert np.array_equal(found, nearest)
        assert found.max() == 448


class TestWeights:
    def test_each_tensor_of_codes_is_known_by_them(
        self, weights: dict[str, Weight], symmetric_artifact: Artifact
    ) -> None:
        assert sorted(weight.parameter for weight in weights.values()) == sorted(parameters(symmetric_artifact))
        for weight in weights.values():
            assert weight.amax == pytest.approx(np.abs(weight.values).max(), rel=1e-5)

    def test_codes_of_no_weight_are_refused(self, int8_graph: onnx.ModelProto, symmetric_artifact: Artifact) -> None:
        others = {name: -values for name, values in parameters(symmetric_artifact).items()}
        with pytest.raises(ExportError, match="no weight of the model has these codes"):
            original_weights(int8_graph, others, 63)


class TestGraph:
    @pytest.fixture
    def reference(self, symmetric_artifact: Artifact, data: Dataset) -> FakeQuantizedModel:
        """The model under its int8 quantizers."""
        return cast(FakeQuantizedModel, symmetric_artifact.executable(data.example()))

    def test_with_every_layer_in_fp8_computes_what_the_model_does(
        self,
        int8_graph: onnx.ModelProto,
        weights: dict[str, Weight],
        reference: FakeQuantizedModel,
        symmetric_artifact: Artifact,
        data: Dataset,
    ) -> None:
        form = for_tensorrt(int8_graph).model
        unrounded = unrounded_activations(int8_graph, form, reference)
        eight = in_e4m3(form, weights)
        turn_to_e4m3(reference)
        proof = proof_of(eight, reference, symmetric_artifact.model, data, unrounded)
        assert proof.mean_relative < 1e-3
        # Twice the scale of one activation is not the same model any more.
        (scale, *_) = (tensor for tensor in eight.graph.initializer if tensor.name.endswith("fp8-scale"))
        scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
        assert proof_of(eight, reference, symmetric_artifact.model, data, unrounded).mean_relative > 1e-2

    def test_has_one_scale_a_tensor_and_no_other_codes(
        self, int8_graph: onnx.ModelProto, weights: dict[str, Weight]
    ) -> None:
        graph = in_e4m3(for_tensorrt(int8_graph).model, weights).graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        quantizers = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        assert quantizers
        for node in quantizers:
            assert list(constants[node.input[1]].dims) == []
            assert constants[node.input[2]].data_type == onnx.TensorProto.FLOAT8E4M3FN
            assert not [attribute for attribute in node.attribute if attribute.name == "axis"]

    def test_layers_without_kernels_have_their_weights_back(
        self, int8_graph: onnx.ModelProto, weights: dict[str, Weight], symmetric_artifact: Artifact
    ) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(int8_graph)
        floats = without_kernels(copy)
        assert floats["conv1/Conv"].startswith("fp8 convolutions need 16 channels")
        assert "layer3.0.conv2/Conv" not in floats
        left = left_in_float(copy, floats, weights)
        assert "conv1.weight" in left
        (node,) = (node for node in copy.graph.node if node.name == "conv1/Conv")
        (weight,) = (tensor for tensor in copy.graph.initializer if tensor.name == node.input[1])
        assert np.array_equal(onnx.numpy_helper.to_array(weight), parameters(symmetric_artifact)["conv1.weight"])

    def test_is_told_by_its_remarks_and_compared_with_the_same_roundings(
        self, symmetric_artifact: Artifact, data: Dataset, metadata: OnnxMetadata
    ) -> None:
        made = quantized_model(symmetric_artifact, "fp8", "fp32", data, metadata)
        assert any(remark.startswith("not in fp8: conv1/Conv") for remark in made.remarks)
        assert made.proof.mean_relative < 1e-3
        # The reference goes on without the roundings that the graph has not.
        plain = proof_of(made.model, cast(FakeQuantizedModel, made.reference), symmetric_artifact.model, data, ())
        assert plain.mean_relative == pytest.approx(made.proof.mean_relative, abs=1e-6)


def layer(operator: str, weight: str, attributes: str = "") -> onnx.ModelProto:
    """A layer whose weight of the given shape is stored as codes."""
    sizes = [int(size) for size in weight.split(",")]
    image = "N," + ",".join(map(str, (64, *([9] * (len(sizes) - 2)))))
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21]> one (float[{image}] x) => (float[N] y)'
        "<float s = {0.1}, int8 z = {0}>"
        f"{{ d = DequantizeLinear(w, s, z) y = {operator}{attributes}(x, d) }}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(sizes, np.int8), "w"))
    model.graph.node[-1].name = "layer"
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (layer("Conv", "32,64,3,3"), None),
        (layer("Conv", "32,64,7,7"), "32 positions"),
        (layer("Conv", "8,64,3,3"), "16 channels"),
        (layer("Conv", "40,64,1,1"), "beyond a multiple"),
        (layer("Conv", "64,1,3,3", "<group = 64>"), "grouped"),
        (layer("ConvTranspose", "64,32,2,2"), "transposed"),
        (layer("MatMul", "64,32"), None),
        (layer("MatMul", "64,10"), "16 inputs and outputs"),
    ],
    ids=["conv", "large kernel", "few channels", "crooked", "grouped", "transposed", "matmul", "few outputs"],
)
def test_what_has_no_kernel(model: onnx.ModelProto, reason: str | None) -> None:
    found = without_kernels(model)
    assert (found == {}) if reason is None else (reason in found["layer"])
