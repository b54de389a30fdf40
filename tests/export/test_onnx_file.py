"""Facts about the exported ONNX files."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from potstill.export.deliver import BuiltEngine
from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_the_float_engine_computes_what_the_model_does_at_any_batch_size(
    float_engine: BuiltEngine, float_artifact: Artifact, data: Dataset, target: OnnxRuntimeTarget, batch: int
) -> None:
    inputs = data.example(batch)
    with torch.no_grad():
        expected = float_artifact.model(*inputs.values()).numpy()
    with target.open(float_engine.path) as engine:
        outputs = engine.run(numpy_inputs(inputs))
    assert list(outputs) == ["logits"]
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_says_where_it_came_from_and_what_it_takes(
    float_engine: BuiltEngine, int8_engine: BuiltEngine, metadata: OnnxMetadata, precision: str
) -> None:
    model = onnx.load((float_engine if precision == "fp32" else int8_engine).path)
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert notes["potstill.recipe_hash"] == metadata.recipe_hash
    assert notes["potstill.stage"] == metadata.stage
    assert notes["potstill.precision"] == precision
    assert json.loads(notes["potstill.classes"]) == list(metadata.classes)
    (image,) = model.graph.input
    assert image.name == "image"
    dimensions = [each.dim_param or each.dim_value for each in image.type.tensor_type.shape.dim]
    assert dimensions == ["batch", 1, 16, 16]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [21]


@pytest.mark.parametrize("which", ["float_engine", "int8_engine"])
def test_nothing_of_this_machine_is_in_a_file(which: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(which).path.read_bytes()
    for trace in (str(Path.home()), str(Path(__file__).parents[2]), "site-packages", ".py", "stack_trace", "File "):
        assert trace.encode() not in content


def test_equal_weights_give_equal_bytes_and_nothing_is_printed(
    float_engine: BuiltEngine,
    float_artifact: Artifact,
    data: Dataset,
    target: OnnxRuntimeTarget,
    metadata: OnnxMetadata,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The fixtures exported other models between the first file and this one.
    model = exported(float_artifact, "fp32", data.example(5), metadata)
    file = target.build(model, "fp32", tmp_path)
    assert file.read_bytes() == float_engine.path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_layers_are_named_by_their_modules(float_engine: BuiltEngine, float_artifact: Artifact) -> None:
    model = onnx.load(float_engine.path)
    layers = {node.name.rpartition("/")[0] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    modules = {name for name, each in float_artifact.model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    assert layers == modules


def test_int8_weights_are_stored_as_bytes(int8_engine: BuiltEngine, float_engine: BuiltEngine) -> None:
    constants = {tensor.name: tensor for tensor in onnx.load(int8_engine.path).graph.initializer}
    convolutions = [tensor for tensor in constants.values() if len(tensor.dims) == 4]
    assert len(convolutions) == 9
    assert {tensor.data_type for tensor in convolutions} == {onnx.TensorProto.INT8}
    assert int8_engine.file_bytes < 0.7 * float_engine.file_bytes


def test_int8_of_a_model_without_quantizers_is_refused(
    float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata
) -> None:
    with pytest.raises(ExportError, match="add a quantize stage"):
        exported(float_artifact, "int8", data.example(), metadata)


class Bessel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(torch.special.bessel_j0(image.flatten(1)))


def test_an_operator_that_onnx_lacks_is_named(any_blueprint: Blueprint, data: Dataset, metadata: OnnxMetadata) -> None:
    with pytest.raises(ExportError, match=r"bessel_j0[\s\S]*Mend") as raised:
        exported(Artifact(model=Bessel().eval(), blueprint=any_blueprint), "fp32", data.example(), metadata)
    assert len(str(raised.value)) < 1000


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 4, bias=False)

    def forward(self, image: Tensor, offset: Tensor) -> Tensor:
        return self.linear(image.flatten(1)) + offset


def test_inputs_keep_their_names(any_blueprint: Blueprint, data: Dataset, metadata: OnnxMetadata) -> None:
    inputs = {**data.example(), "offset": torch.ones(2, 4)}
    model = exported(Artifact(model=TwoInputs().eval(), blueprint=any_blueprint), "fp32", inputs, metadata)
    assert [value.name for value in model.graph.input] == ["image", "offset"]
