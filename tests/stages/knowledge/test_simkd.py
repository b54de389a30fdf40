"""Facts about reusing the teacher's classifier."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.teacher import Teacher
from potstill.stages.distill import Distill
from potstill.stages.prune import Prune
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


@pytest.fixture
def student(new_artifact: NewArtifact, new_context: NewContext) -> Artifact:
    teacher = new_artifact(seed=1, width=16)
    stage = Distill.model_validate({"student": {"from": "teacher", "width": 0.5}, "knowledge": ["simkd"], "epochs": 1})
    return stage.run(teacher, new_context(Teacher(teacher)))


def test_the_student_keeps_the_teachers_classifier_untouched(student: Artifact, new_artifact: NewArtifact) -> None:
    teacher = new_artifact(seed=1, width=16).model
    mine, theirs = student.model.get_submodule("linear"), teacher.get_submodule("linear")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


def test_the_projector_stays_and_comes_back_from_disk(
    student: Artifact, new_context: NewContext, tmp_path: Path
) -> None:
    inputs = new_context().data.example()
    student.save(tmp_path / "artifact", inputs)
    loaded = Artifact.load(tmp_path / "artifact")
    with torch.no_grad():
        assert torch.equal(loaded.model(*inputs.values()), student.model(*inputs.values()))
    assert loaded.model.get_submodule("pool.0.0").weight.shape == (32, 32, 1, 1)


def test_recovery_after_a_compression_cannot_use_it() -> None:
    with pytest.raises(ValidationError, match="`distill` alone"):
        Prune.model_validate({"keep": {"macs": 0.5}, "recover": {"knowledge": ["simkd"]}})
