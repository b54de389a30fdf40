"""Facts about students that learn from a teacher's outputs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.registry import discovered
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, Schedule, fit
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

SETTINGS: dict[str, dict[str, Any]] = {
    "logits": {},
    "kd": {},
    "dkd": {"warmup": 0},
    "nkd": {},
    "dist": {"standardize": True},
    "wsld": {},
    "normkd": {},
    "ttm": {"weight": 1},
    "wttm": {"weight": 0.1},
    "tf_kd": {},
    "ctkd": {"scope": "instance"},
    "rld": {"warmup": 0},
    "sobolev": {"weight": 1},
    "bss": {"step_size": 20},  # the teacher is not trained, and its boundaries are far
}


def objective_of(method: str, settings: dict[str, Any], student: Artifact, context: Context) -> DistillationObjective:
    distillation = Distillation.model_validate({"knowledge": [{method: settings}], "task_weight": 0})
    return DistillationObjective(distillation, student.model, student.blueprint, context)


def test_every_response_method_of_one_view_is_trained_here() -> None:
    found = discovered("potstill.stages.knowledge.response", Method)
    assert {name for name, method in found.items() if "two views" not in method.needs} == set(SETTINGS)
    assert all(method.kind == "response" for method in found.values())


@pytest.mark.parametrize("method", SETTINGS)
def test_a_few_steps_lower_the_loss(method: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    """Through the objective, with a teacher of another width and depth, always on the same samples."""
    context = new_context(Teacher(new_artifact(seed=1, depth=14, width=16)))
    student = new_artifact(seed=2)
    objective = objective_of(method, SETTINGS[method], student, context)
    batch = context.data.train.batch(torch.arange(64))
    parameters = list(student.model.train().parameters())
    optimizer = torch.optim.SGD([*parameters, *objective.parameters()], lr=0.02)
    losses: list[Tensor] = []
    for step in range(4):
        torch.manual_seed(0)
        terms = objective.terms(student.model, batch, Moment(step, 100, 0))
        assert set(terms) == {method}
        losses.append(terms[method].detach())
        optimizer.zero_grad()
        terms[method].backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        assert any(bool(gradient.any()) for gradient in gradients)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert bool(losses[-1] < losses[0])


@pytest.mark.parametrize("scope", ["global", "instance"])
def test_a_learnt_temperature_is_trained_with_the_student(
    scope: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    context = new_context(Teacher(new_artifact(seed=1, width=16)))
    student = new_artifact(seed=2)
    objective = objective_of("ctkd", {"scope": scope}, student, context)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    fit(student.model, objective, Schedule(epochs=1), context)
    assert any(not torch.equal(before[name], value.cpu()) for name, value in objective.state_dict().items())
    assert set(student.model.state_dict()) == set(student.blueprint.build().state_dict())


def test_a_virtual_teacher_needs_no_other(new_artifact: NewArtifact, new_context: NewContext) -> None:
    context, student = new_context(), new_artifact()
    objective = objective_of("tf_kd", {}, student, context)
    batch = context.data.train.batch(torch.arange(8))
    assert float(objective.terms(student.model, batch, Moment(0, 1, 0))["tf_kd"].detach()) > 0


@pytest.mark.parametrize("method", ["sobolev", "bss"])
def test_networks_run_again_in_mixed_precision(method: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    context = replace(new_context(Teacher(new_artifact(seed=1, width=16))), precision="bf16")
    student = new_artifact(seed=2)
    objective = objective_of(method, SETTINGS[method], student, context)
    term = objective.terms(student.model.train(), context.data.train.batch(torch.arange(32)), Moment(0, 1, 0))[method]
    term.backward()
    assert term.dtype == torch.float32
    gradients = [parameter.grad for parameter in student.model.parameters() if parameter.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)
