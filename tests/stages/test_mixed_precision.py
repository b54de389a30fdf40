"""Facts about layers that go back to float, asked for by name, by accuracy or by time."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill.export.deliver import OnnxMetadata, build_engine
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import StageError
from potstill.stages.quantization.mixed_precision import MixedPrecision
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from potstill.stages.train import Train

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

UNTRAINED = Recovery(epochs=0)


def quantize(**settings: Any) -> Quantize:
    return Quantize(recover=UNTRAINED, **settings)


def with_outliers(artifact: Artifact) -> Artifact:
    """A network in which one layer's input holds a channel so large that the others vanish on its int8 grid.

    The layer before writes it a thousand times larger, and the layer itself weighs it a thousand times less.
    """
    with torch.no_grad():
        norm, reader = (artifact.model.get_submodule(f"layer2.0.{name}") for name in ("bn1", "conv2"))
        norm.weight[0] *= 1000
        norm.bias[0] *= 1000
        reader.weight[:, 0] /= 1000
    return artifact


@pytest.fixture
def outliers(new_artifact: NewArtifact, new_context: NewContext) -> Artifact:
    """Trained, then spread."""
    return with_outliers(Train(epochs=4).run(new_artifact(), new_context(step="train")))


class TestSettings:
    def test_ask_for_something(self) -> None:
        with pytest.raises(ValidationError, match=r"give `loss_rise: 0\.02` or `faster: true`, or both"):
            MixedPrecision()


class TestIgnore:
    def test_leaves_layers_in_float_in_the_engine_too(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Any
    ) -> None:
        quantized = quantize(ignore=("layer1.0", "linear")).run(new_artifact(), new_context())
        quantization = quantized.quantization
        assert quantization is not None
        assert not any(name.startswith(("layer1.0.", "linear.")) for name in quantization.weights)
        metadata = OnnxMetadata(recipe_hash="", stage="quantize", classes=data.classes)
        engine = build_engine(quantized, OnnxRuntimeTarget(), "int8", tmp_path, data, metadata=metadata)
        assert engine.audit is not None
        floats = {layer.name: layer.reason for layer in engine.audit.layers if layer.precision == "float"}
        on_purpose = "the `quantize` stage left it in float"
        assert floats == dict.fromkeys(("layer1.0.conv1", "layer1.0.conv2", "linear"), on_purpose)
        # 90 % are demanded, and met: of what was to be in int8.
        assert engine.audit.int8_share < 0.9

    def test_survives_training_and_saving(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Any
    ) -> None:
        stage = Quantize(ignore=("linear",), recover=Recovery(epochs=1, knowledge=()))
        stage.run(new_artifact(), new_context()).save(tmp_path, data.example())
        loaded = Artifact.load(tmp_path).quantization
        assert loaded is not None
        assert loaded.float_layers == ("linear",)
        assert "linear.weight" not in loaded.weights

    def test_a_pattern_that_names_nothing_is_refused(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match="'head' matches no module"):
            quantize(ignore=("head",)).run(new_artifact(), new_context())


class TestByLoss:
    def test_the_layer_that_int8_ruins_goes_back_and_the_loss_is_met(
        self, outliers: Artifact, new_context: NewContext
    ) -> None:
        context = new_context()
        quantized = quantize(mixed_precision=MixedPrecision(loss_rise=0.02)).run(outliers, context)
        facts: Any = context.journal.facts
        assert facts["back in float"][0]["layer"] == "layer2.0.conv2"
        by_loss = {each["loss_in_int8"]: each["layer"] for each in facts["sensitivity"]}
        assert by_loss[max(by_loss)] == "layer2.0.conv2"
        assert len(facts["sensitivity"]) > 2 * len(facts["back in float"])
        assert quantized.quantization is not None
        assert "layer2.0.conv2.weight" not in quantized.quantization.weights
        assert mean_loss(quantized, context) - mean_loss(outliers, context) <= 0.02

    def test_what_int8_does_no_harm_stays_in_int8(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        quantize(mixed_precision=MixedPrecision(loss_rise=10)).run(new_artifact(), context)
        assert context.journal.facts["back in float"] == []

    def test_without_a_layer_in_int8_it_is_an_error(self, outliers: Artifact, new_context: NewContext) -> None:
        others = ("conv1", "layer1.*", "layer2.0.shortcut*", "layer3.*", "linear")
        stage = quantize(ignore=others, mixed_precision=MixedPrecision(loss_rise=1e-6))
        with pytest.raises(StageError, match="no layer would be left in int8"):
            stage.run(outliers, new_context())


class TestByTime:
    def test_every_layer_is_timed_in_float_and_a_killed_step_goes_on_with_what_it_found(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        deeper = ("layer2.*", "layer3.*", "linear")
        stage, context = quantize(ignore=deeper, mixed_precision=MixedPrecision(faster=True)), new_context()
        stage.run(new_artifact(depth=8), context)
        facts: Any = context.journal.facts
        layers = [each["layer"] for each in facts["engines timed"]]
        assert sorted(layers) == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
        faster = {each["layer"] for each in facts["engines timed"] if each["verdict"] == "faster"}
        assert {each["layer"] for each in facts["back in float"]} <= faster
        decided = {"returned": [{"layer": "conv1", "reason": "measured before"}], "sensitivity": [], "engines": []}
        (context.checkpoints / "mixed-precision.json").write_text(json.dumps(decided))
        resumed = stage.run(new_artifact(depth=8), context).quantization
        assert resumed is not None
        assert {"conv1", "layer1.0.conv1"} & set(resumed.float_layers) == {"conv1"}

    def test_a_rehearsal_times_nothing(self) -> None:
        stage = quantize(mixed_precision=MixedPrecision(faster=True))
        assert stage.decides_by_engine
        assert stage.untrained().mixed_precision is None


def mean_loss(artifact: Artifact, context: Context) -> float:
    train = context.data.train
    batch = train.batch(torch.arange(len(train)))
    with torch.no_grad():
        outputs = artifact.executable(context.data.example())(*batch.inputs.values())
    return float(context.task.loss(outputs, batch.target))
