"""Engines of text encoders: any length, and padding that changes nothing."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.onnx_file import exported
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.cost import macs_by_layer
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError, ModelError
from tests.export.conftest import quantized
from tests.support.random_texts import LONGEST, encoder_artifact, random_texts, tokens

METADATA = OnnxMetadata(recipe_hash="", stage="train", classes=("no", "yes"))


@pytest.fixture(scope="module")
def texts() -> Dataset:
    return random_texts()


@pytest.fixture(scope="module")
def encoder(texts: Dataset) -> Artifact:
    return encoder_artifact(texts)


@pytest.fixture(scope="module")
def int8_encoder(encoder: Artifact, texts: Dataset) -> Artifact:
    return replace(encoder, quantization=quantized(encoder.model, texts))


@pytest.fixture(scope="module", params=["fp32", "int8"])
def engine(
    request: pytest.FixtureRequest,
    encoder: Artifact,
    int8_encoder: Artifact,
    texts: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> BuiltEngine:
    """Which is built only when it computes what the model does, on texts one by one and in batches."""
    artifact = int8_encoder if request.param == "int8" else encoder
    folder = tmp_path_factory.mktemp(request.param)
    return build_engine(artifact, OnnxRuntimeTarget(), request.param, folder, texts, metadata=METADATA)


def test_a_file_says_that_batch_and_length_are_free(encoder: Artifact, texts: Dataset) -> None:
    model = exported(encoder, "fp32", texts.example(), METADATA)
    named = {
        value.name: [dimension.dim_param for dimension in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert named == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}


@pytest.mark.parametrize("length", [1, 3, 17, LONGEST])
def test_an_engine_computes_what_the_model_does_at_any_length(
    engine: BuiltEngine, encoder: Artifact, int8_encoder: Artifact, texts: Dataset, length: int
) -> None:
    artifact = encoder if engine.precision == "fp32" else int8_encoder
    inputs = tokens(length, max(length - 2, 1), length, seed=length)
    with OnnxRuntimeTarget().open(engine.path) as opened, torch.no_grad():
        ours = opened.run(numpy_inputs(inputs))["logits"]
        theirs = artifact.executable(texts.example())(*inputs.values()).numpy()
    # A sum on the other side of a rounding moves an int8 engine's output by a step of the last grid.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if engine.precision == "fp32" else 0.05)


@pytest.mark.parametrize("engine", ["int8"], indirect=True)
def test_an_audit_counts_multiply_accumulates_as_the_report_does(
    engine: BuiltEngine, encoder: Artifact, texts: Dataset
) -> None:
    """For a sample of the median length."""
    assert engine.audit is not None
    counted = {layer.name: layer.macs for layer in engine.audit.layers}
    assert counted == macs_by_layer(encoder.model, texts.example())


def test_padding_does_not_change_what_an_engine_says(engine: BuiltEngine) -> None:
    together = tokens(3, LONGEST, 9)
    with OnnxRuntimeTarget().open(engine.path) as opened:
        outputs = opened.run(numpy_inputs(together))["logits"]
        for row, length in enumerate((3, LONGEST, 9)):
            alone = {name: tensor[row : row + 1, :length] for name, tensor in together.items()}
            np.testing.assert_allclose(outputs[row], opened.run(numpy_inputs(alone))["logits"][0], atol=1e-5)


def test_layers_on_tokens_are_rows_for_the_int8_kernel(engine: BuiltEngine) -> None:
    if engine.precision != "int8":
        assert engine.audit is None
        return
    assert engine.audit is not None
    assert engine.audit.int8_share == 1.0
    model = onnx.load(engine.path)
    layers = 2 * len(("query", "key", "value", "project", "expand", "project"))
    assert sum(node.op_type == "Gemm" for node in model.graph.node) == layers + len(("head",))


def test_a_model_of_one_length_is_refused(texts: Dataset, encoder: Artifact) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(LONGEST, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.linear((input_ids * attention_mask).float())

    inputs = tokens(LONGEST, 9)
    with pytest.raises((ExportError, ModelError), match="cannot"):
        exported(replace(encoder, model=Fixed()), "fp32", inputs, METADATA)
