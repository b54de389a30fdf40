"""Facts about quantization with learned grids: what a training leaves, and that it can be interrupted anywhere."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from interruption import StoppingProgress
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.pipeline import training
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Batch
from potstill.pipeline.fake_quantization import FakeQuantizedModel, converted, fake_quantized
from potstill.pipeline.learned_steps import learn_steps
from potstill.pipeline.quantization import Quantization
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, Objective, Schedule, fit
from potstill.stages.prune import Prune
from potstill.stages.quantization.calibration import calibrated
from potstill.stages.quantization.folding import fold_batch_norms
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]
STAGE = Quantize.model_validate({"learn_steps": True, "weight_bits": 7, "recover": {"epochs": 1}})


@pytest.fixture
def learned(new_artifact: NewArtifact, new_context: NewContext) -> tuple[Artifact, Context]:
    """A ResNet-8 whose grids were trained for an epoch, and where."""
    context = new_context(Teacher(new_artifact(seed=1)))
    return STAGE.run(new_artifact(), context), context


def quantization_of(artifact: Artifact) -> Quantization:
    assert artifact.quantization is not None
    return artifact.quantization


def test_learned_scales_are_saved_and_exported_with_codes_within_seven_bits(learned: tuple[Artifact, Context]) -> None:
    artifact, context = learned
    quantization, example = quantization_of(artifact), context.data.example(16)
    assert set(quantization.weight_scales) == set(quantization.weights)
    model = fake_quantized(artifact.model, quantization, example)
    with torch.no_grad():
        fake, graph = model(*example.values()), converted(model, example)
        real = graph(*example.values())
    step = quantization.activations["linear:linear"].scale
    assert float((fake - real).abs().max()) <= 1.01 * step
    codes = [tensor for tensor in graph.state_dict().values() if tensor.dtype == torch.int8]
    assert len(codes) == len(quantization.weights)
    assert max(int(tensor.int().abs().max()) for tensor in codes) <= 63
    moved = [
        name
        for name, scales in quantization.weight_scales.items()
        if not torch.allclose(torch.tensor(scales), artifact.model.get_parameter(name).abs().flatten(1).amax(1) / 63)
    ]
    assert moved  # the scales do not follow from the weights any more
    shares = context.journal.facts["learned scales of activations, as shares of the calibrated ones"]
    assert isinstance(shares, dict)
    assert shares["smallest"] != shares["largest"]
    artifact.save(context.directory / "saved", example)
    reloaded = Artifact.load(context.directory / "saved")
    assert reloaded.quantization == artifact.quantization
    with torch.no_grad():
        outputs = [each.executable(example)(*example.values()) for each in (artifact, reloaded)]
    assert torch.equal(outputs[0], outputs[1])


def test_a_cut_that_follows_learns_grids_of_its_own(learned: tuple[Artifact, Context]) -> None:
    artifact, context = learned
    folder = context.directory / "prune"
    folder.mkdir()
    stage = Prune.model_validate({"keep": {"macs": 0.7}, "recover": {"epochs": 1}})
    pruned = stage.run(artifact, replace(context, checkpoints=folder))
    sizes = {name: len(scales) for name, scales in quantization_of(pruned).weight_scales.items()}
    assert sizes == {name: len(pruned.model.get_parameter(name)) for name in quantization_of(pruned).weights}
    assert sizes != {name: len(scales) for name, scales in quantization_of(artifact).weight_scales.items()}


def test_an_interrupted_training_ends_with_the_undisturbed_weights_and_grids(
    new_artifact: NewArtifact, new_context: NewContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    teacher = Teacher(new_artifact(seed=1))
    calm = STAGE.run(new_artifact(), new_context(teacher, step="calm"))
    stormy = new_context(teacher, step="stormy")
    with pytest.raises(KeyboardInterrupt):
        STAGE.run(new_artifact(), replace(stormy, progress=StoppingProgress(3)))
    resumed = STAGE.run(new_artifact(), stormy)
    assert resumed.quantization == calm.quantization
    for name, tensor in calm.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


class Still(Objective):
    """A loss that depends on every parameter and moves none."""

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        return {"still": 0.0 * model(*batch.inputs.values()).sum()}


def test_weight_decay_leaves_the_grids_alone(new_artifact: NewArtifact, new_context: NewContext) -> None:
    context = new_context()
    example = context.data.example()
    folded, _ = fold_batch_norms(new_artifact().model, example)
    asked = Quantization(weight_bits=7, weights=(), activations={}, learn_steps=True)
    model: FakeQuantizedModel = fake_quantized(folded, calibrated(folded, asked, context), example)
    learn_steps(model, example)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(model, Still(), Schedule(epochs=1, weight_decay=0.1), context)
    after = dict(model.named_parameters())
    grids = [name for name in after if name.endswith((".step", ".offset"))]
    assert len(grids) > 20
    assert all(torch.equal(after[name], before[name]) for name in grids)
    assert not torch.equal(after["graph.conv1.weight"], before["graph.conv1.weight"])


def test_grids_are_learned_only_where_something_trains() -> None:
    with pytest.raises(ValidationError, match=r"give `recover\.epochs`"):
        Quantize.model_validate({"learn_steps": True, "recover": {"epochs": 0}})


def test_the_rehearsal_of_learned_grids_is_a_calibration(new_artifact: NewArtifact, new_context: NewContext) -> None:
    rehearsed = STAGE.untrained().run(new_artifact(), new_context())
    assert quantization_of(rehearsed).weight_scales == {}
