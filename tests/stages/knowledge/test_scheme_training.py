"""Whole trainings by the schemes that need no teacher."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from interruption import StoppingProgress

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.progress import Silent
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import metric_of
from potstill.stages.distill import Distill
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

SCHEMES: dict[str, Any] = {
    "dml": {"dml": {"peers": 2}},
    "dml with the teacher": {"dml": {"peers": ["teacher"]}},
    "dml one way": {"dml": {"teaches": "student", "peers": [{"name": "resnet", "depth": 8, "width": 16}]}},
    "byot": "byot",
    "cs_kd": "cs_kd",
    "ps_kd": "ps_kd",
}


@pytest.mark.parametrize("scheme", SCHEMES)
class TestTraining:
    @pytest.fixture
    def stage(self, scheme: str) -> Distill:
        student = {"name": "resnet", "depth": 8, "width": 8}
        return Distill.model_validate({"student": student, "knowledge": [SCHEMES[scheme]], "epochs": 2})

    def test_interrupted_goes_on_to_the_undisturbed_weights_and_curve(
        self, stage: Distill, new_artifact: NewArtifact, new_context: NewContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        origin = new_artifact(seed=1)
        calm = new_context(Teacher(origin), step="calm")
        undisturbed = stage.run(origin, calm).model.state_dict()

        # A constant of the loop: with none of it between checkpoints, each step leaves one.
        monkeypatch.setattr("potstill.pipeline.training.CHECKPOINT_SECONDS", 0.0)
        stormy = new_context(Teacher(origin), step="stormy")
        with pytest.raises(KeyboardInterrupt):
            stage.run(origin, replace(stormy, progress=StoppingProgress(7)))
        stormy.journal.curve.clear()
        resumed = stage.run(origin, replace(stormy, progress=Silent())).model.state_dict()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in undisturbed.items())
        assert stormy.journal.curve == calm.journal.curve

    def test_learns_the_task(self, stage: Distill, new_artifact: NewArtifact, new_context: NewContext) -> None:
        origin = new_artifact(seed=1)
        context = new_context(Teacher(origin))
        student = stage.model_copy(update={"epochs": 6}).run(origin, context)
        assert metric_of(student.model, context.data.test, context) > 0.9
        assert set(student.model.state_dict()) == set(student.blueprint.build().state_dict())


class TestRecovery:
    def test_of_a_quantized_student_may_use_them_all(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        origin = new_artifact(seed=1)
        context = new_context(Teacher(new_artifact(seed=2, width=16)))
        knowledge = ["byot", "cs_kd", "ps_kd", {"dml": {"peers": ["teacher"]}}]
        stage = Quantize.model_validate(
            {"calibration": {"samples": 32}, "recover": {"knowledge": knowledge, "epochs": 1}}
        )
        made = stage.run(origin, context)
        assert set(context.journal.curve[0].terms) == {"task", "byot", "cs_kd", "ps_kd", "dml", "dml itself"}
        assert set(made.model.state_dict()) == set(made.blueprint.build().state_dict())
        head = "linear.weight"
        assert not torch.equal(made.model.get_parameter(head), origin.model.get_parameter(head))


class TestOfATransformer:
    def test_heads_stand_at_its_blocks(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        student = {"name": "vit", "patch": 4, "width": 16, "depth": 3, "heads": 2}
        stage = Distill.model_validate({"student": student, "knowledge": ["byot"], "epochs": 1})
        context = new_context(Teacher(new_artifact()))
        stage.run(new_artifact(), context)
        facts: Any = context.journal.facts["knowledge"]
        assert facts[0]["taps"].count("→") == 3
