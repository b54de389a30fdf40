"""Facts about students that learn how a teacher's samples and channels relate."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.registry import discovered
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, Schedule, fit
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

METHODS = ["sp", "pkt", "rkd", "cc", "fsp", "irg", "crd", "ickd", "itrd", "kdsvd"]
OF_EACH_SAMPLE = ["fsp", "crd", "ickd", "kdsvd"]
"""Those whose loss is a sample's own."""

STEPS = {"crd": 20}
"""Its first steps compare with banks of noise, which nothing can be told from."""


def objective_of(method: str, student: Artifact, context: Context) -> DistillationObjective:
    distillation = Distillation.model_validate({"knowledge": [method], "task_weight": 0})
    return DistillationObjective(distillation, student.model, student.blueprint, context)


def test_they_are_all_of_one_kind() -> None:
    found = discovered("potstill.stages.knowledge.relation", Method)
    assert {found[name].kind for name in METHODS} == {"relation"}


@pytest.mark.parametrize("method", METHODS)
def test_a_few_steps_lower_the_loss(method: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    """Through the objective, with a teacher of another width and depth, always on the same samples."""
    context = new_context(Teacher(new_artifact(seed=1, depth=14, width=16)))
    student = new_artifact(seed=2)
    objective = objective_of(method, student, context)
    batch = context.data.train.batch(torch.arange(48))
    parameters = list(student.model.train().parameters())
    optimizer = torch.optim.SGD([*parameters, *objective.parameters()], lr=0.02)
    losses: list[Tensor] = []
    for step in range(STEPS.get(method, 5)):
        torch.manual_seed(0)
        terms = objective.terms(student.model, batch, Moment(step, 100, 0))
        assert set(terms) == {method}
        losses.append(terms[method].detach())
        optimizer.zero_grad()
        terms[method].backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients)
        own = list(objective.parameters())
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in own)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert bool(losses[-1] < losses[0])


def test_banks_are_in_checkpoints_and_not_in_the_student(new_artifact: NewArtifact, new_context: NewContext) -> None:
    context = new_context(Teacher(new_artifact(seed=1, width=16)))
    student = new_artifact(seed=2)
    objective = objective_of("crd", student, context)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    fit(student.model, objective, Schedule(epochs=1), context)
    banks = {name for name in before if name.endswith("_bank")}
    assert len(banks) == 2
    for name in banks:
        moved = (objective.state_dict()[name].cpu() != before[name]).any(1)
        assert int(moved.sum()) == len(context.data.train)
    assert set(student.model.state_dict()) == set(student.blueprint.build().state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_teachers_are_weighed_in_each_sample_where_it_has_a_loss_of_its_own(
    method: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    context = new_context(Teacher(new_artifact(seed=1, width=16)))
    context = replace(context, artifacts={"assistant": new_artifact(seed=3)})
    student = new_artifact(seed=2)
    settings = Distillation.model_validate(
        {"knowledge": [method], "teachers": ["teacher", "assistant"], "combine": "confidence"}
    )
    objective = DistillationObjective(settings, student.model, student.blueprint, context)
    batch = context.data.train.batch(torch.arange(16))
    if method in OF_EACH_SAMPLE:
        assert bool(torch.isfinite(objective.terms(student.model.train(), batch, Moment(0, 9, 0))[method]))
    else:
        with pytest.raises(StageError, match="compares samples with each other"):
            objective.terms(student.model.train(), batch, Moment(0, 9, 0))
