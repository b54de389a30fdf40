"""Facts about the form for TensorRT: where quantizers stand, and that it computes what the model does."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import onnx
import pytest

from potstill.export.dialects.grids import signed
from potstill.export.dialects.tensorrt import TensorRTForm, for_tensorrt
from potstill.export.dialects.tensorrt_rules import placement_problems
from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.export.proof import proof_of, unrounded_activations
from potstill.export.tensorrt_file import quantized_model, tensorrt_model, write_tensorrt_onnx
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.fake_quantization import FakeQuantizedModel
from potstill.pipeline.quantization import Calibration
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on
from tests.support.family_data import family_artifact, family_data

SYMMETRIC = Quantize(grids="symmetric", calibration=Calibration(samples=32), recover=Recovery(epochs=0))


@pytest.fixture(scope="session")
def graph(symmetric_artifact: Artifact, data: Dataset, metadata: OnnxMetadata) -> onnx.ModelProto:
    """The residual network as every runtime gets it."""
    return exported(symmetric_artifact, "int8", data.example(), metadata)


@pytest.fixture(scope="session")
def form(graph: onnx.ModelProto) -> TensorRTForm:
    """The residual network as TensorRT gets it."""
    return for_tensorrt(graph)


def additions(model: onnx.ModelProto) -> Iterator[tuple[str, set[str]]]:
    """Each addition with the operators that make its addends."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Add":
            yield node.name, {made_by[name].op_type for name in node.input}


class TestPlacement:
    def test_additions_read_a_convolution_and_a_quantized_skip(
        self, graph: onnx.ModelProto, form: TensorRTForm
    ) -> None:
        assert [makers for _, makers in additions(graph)] == [{"DequantizeLinear"}] * 3
        assert [makers for _, makers in additions(form.model)] == [{"Conv", "DequantizeLinear"}] * 3

    def test_of_two_convolutions_that_are_added_the_projection_is_the_skip(self, form: TensorRTForm) -> None:
        # Two blocks have a convolution in their shortcut, which keeps its quantizer.
        blocks = ("layer1.0", "layer2.0", "layer3.0")
        assert set(form.unrounded) == {*(f"{block}.conv2/Conv:out" for block in blocks), "linear/Gemm:out"}

    def test_codes_are_int8_around_zero(self, form: TensorRTForm) -> None:
        assert placement_problems(form.model) == []
        kinds = {tensor.data_type for tensor in form.model.graph.initializer}
        assert onnx.TensorProto.UINT8 not in kinds

    def test_the_graph_that_was_given_stays_as_it_was(self, graph: onnx.ModelProto) -> None:
        before = graph.SerializeToString(deterministic=True)
        for_tensorrt(graph)
        assert graph.SerializeToString(deterministic=True) == before

    def test_an_output_of_the_graph_keeps_its_name(self, form: TensorRTForm) -> None:
        assert [value.name for value in form.model.graph.output] == ["logits"]
        assert form.model.graph.node[-1].op_type == "Gemm"


def joined(operands: str) -> onnx.ModelProto:
    """A concatenation whose output is quantized and multiplied, and both of whose operands come from quantizers."""
    return onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 21]>
        joined (float[N,1] x) => (float[N,2] y)
        <float s = {{0.1}}, float t = {{0.2}}, uint8 z = {{128}}, int8[2,2] w = {{1,0, 0,1}}, float ws = {{0.1}},
         int8 wz = {{0}}>
        {{
            q = QuantizeLinear(x, s, z)   d = DequantizeLinear(q, s, z)
            a = Relu(d)
            aq = QuantizeLinear(a, t, z)  ad = DequantizeLinear(aq, t, z)
            j = Concat<axis = 1>({operands})
            jq = QuantizeLinear(j, t, z)  jd = DequantizeLinear(jq, t, z)
            k = DequantizeLinear(w, ws, wz)
            y = MatMul(jd, k)
        }}
        """
    )


@pytest.mark.parametrize(
    ("operands", "unrounded", "remarked"), [("ad, d", ("a",), True), ("ad, ad", ("x", "a"), False)]
)
def test_what_only_a_concatenation_reads_is_rounded_behind_it(
    operands: str, unrounded: tuple[str, ...], remarked: bool
) -> None:
    form = for_tensorrt(joined(operands))
    assert form.unrounded == unrounded
    assert bool(form.remarks) == remarked


class TestProof:
    def test_with_every_quantizer_kept_it_computes_what_the_fake_quantized_model_does(
        self, graph: onnx.ModelProto, symmetric_artifact: Artifact, data: Dataset
    ) -> None:
        whole = onnx.ModelProto()
        whole.CopyFrom(graph)
        signed(whole.graph)
        reference = cast(FakeQuantizedModel, symmetric_artifact.executable(data.example()))
        assert unrounded_activations(graph, whole, reference) == ()
        assert proof_of(whole, reference, symmetric_artifact.model, data, ()).max_relative < 1e-5

    def test_in_fp32_and_in_fp16_it_computes_what_the_model_does_without_the_roundings_left_out(
        self, symmetric_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path: Path
    ) -> None:
        file = tmp_path / "model.onnx"
        made = write_tensorrt_onnx(symmetric_artifact, "fp16", file, data, metadata=metadata)
        # Where one sum in 64 images falls on the other side of a rounding, a code moves by one step.
        assert made.proof.mean_relative < 1e-3
        assert made.proof_in_half is not None
        assert 1e-6 < made.proof_in_half.mean_relative < 0.03
        assert set(made.unrounded) == {*(f"layer{stage}.0.conv2:conv2d" for stage in (1, 2, 3)), "linear:linear"}
        assert onnx.load(file) == made.model

    def test_a_float_model_in_bf16_is_proven_up_to_the_cast(
        self, float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata
    ) -> None:
        made = tensorrt_model(float_artifact, "bf16", data, metadata)
        assert made.proof.max_relative < 1e-5
        assert (made.proof_in_half, made.unrounded) == (None, ())
        kinds = {tensor.data_type for tensor in made.model.graph.initializer}
        assert kinds == {onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT64}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mobilenet_v3", "vit_fused_qkv", "text_encoder", "unet"])
def test_families_compute_what_their_fake_quantized_models_do(family: str, tmp_path: Path) -> None:
    data = family_data(family)
    artifact = SYMMETRIC.run(family_artifact(family, data), context_on(data, tmp_path))
    metadata = OnnxMetadata(recipe_hash="", stage="quantize", classes=data.classes)
    made = tensorrt_model(artifact, "fp16", data, metadata)
    assert made.proof.mean_relative < 1e-3
    assert made.proof_in_half is not None
    assert placement_problems(made.model) == []
    if family in ("mobilenet_v3", "vit_fused_qkv"):
        eight = quantized_model(artifact, "fp8", "fp16", data, metadata)
        assert eight.proof.mean_relative < 1e-3
        assert placement_problems(eight.model) == []
    reasons = "\n".join(made.remarks)
    assert ("LayerNormalization" in reasons) == (family in ("vit_fused_qkv", "text_encoder"))
