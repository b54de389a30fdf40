"""What holds for every method of distillation, found by its file."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Batch
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.distill import Distill
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.objective import Distillation, DistillationObjective, methods
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

ON_MAPS_OF_IMAGES = [name for name, method in methods().items() if method.kind != "transformer"]
OF_ANY_STUDENT = [name for name in ON_MAPS_OF_IMAGES if not methods()[name].stays_at_inference]

LIVELY: dict[str, dict[str, float]] = {"ab": {"until": 1}, "bss": {"step_size": 50}}
"""Settings with which a method has something to say of untrained networks, whose decision boundaries are far, and
in the second half of a training."""


def objective_for(method: str, student: Artifact, teacher: Artifact, context: Context) -> DistillationObjective:
    settings = Distillation.model_validate({"knowledge": [{method: LIVELY.get(method, {})}]})
    return DistillationObjective(settings, student.model, student.blueprint, context, rehearsal=True)


def some(context: Context, count: int = 32) -> Batch:
    return context.data.train.batch(torch.arange(count))


@pytest.mark.parametrize("method", methods().values(), ids=methods())
def test_says_what_it_is(method: type[Method]) -> None:
    assert method.source
    assert any(character.isdigit() for character in method.source)
    assert method.needs
    assert method.model_fields["weight"].default > 0
    assert (method.__doc__ or "").strip()
    assert method() == method.model_validate({})


@pytest.mark.parametrize("name", OF_ANY_STUDENT)
class TestOnTwoResNets:
    def test_moves_a_student_of_other_width_and_depth(
        self, name: str, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        teacher, student = new_artifact(seed=1, depth=14, width=16), new_artifact(seed=2)
        context = new_context(Teacher(teacher))
        objective = objective_for(name, student, teacher, context)
        model = student.model.train()
        objective.terms(model, some(context), Moment(0, 10, 0))  # some methods compare with an earlier step
        terms = objective.terms(model, some(context), Moment(5, 10, 1))
        assert all(bool(torch.isfinite(value)) for value in terms.values())
        taught = terms[name]
        assert taught.requires_grad
        gradients = torch.autograd.grad(taught, list(model.parameters()), materialize_grads=True)
        assert all(bool(torch.isfinite(each).all()) for each in gradients)
        assert any(bool(each.any()) for each in gradients)

    def test_leaves_the_teacher_as_it_was(self, name: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact(seed=1, width=16)
        teacher = Teacher(artifact)
        context, student = new_context(teacher), new_artifact()
        before = deepcopy(teacher.model(context).state_dict())
        objective = objective_for(name, student, artifact, context)
        terms = objective.terms(student.model.train(), some(context), Moment(5, 10, 1))
        torch.stack(list(terms.values())).sum().backward()
        assert not teacher.model(context).training
        assert all(torch.equal(value, before[key]) for key, value in teacher.model(context).state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.model(context).parameters())

    def test_goes_on_bit_for_bit_from_a_checkpoint(
        self, name: str, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        """What a method remembers between steps must be in its state."""
        teacher = new_artifact(seed=1, width=16)

        def train(model: nn.Module, objective: DistillationObjective, steps: range) -> Tensor:
            total = torch.zeros(())
            for step in steps:
                torch.manual_seed(step)
                terms = objective.terms(model.train(), some(context), Moment(step, 4, step // 2))
                total = torch.stack(list(terms.values())).sum()
                parameters = [*model.parameters(), *objective.parameters()]
                for parameter, gradient in zip(
                    parameters, torch.autograd.grad(total, parameters, materialize_grads=True), strict=True
                ):
                    parameter.data -= 0.01 * gradient
            return total

        context = new_context(Teacher(teacher))
        undisturbed = new_artifact()
        objective = objective_for(name, undisturbed, teacher, context)
        train(undisturbed.model, objective, range(2))
        resumed = new_artifact(seed=9)
        again = objective_for(name, resumed, teacher, context)
        resumed.model.load_state_dict(deepcopy(undisturbed.model.state_dict()))
        again.load_state_dict(deepcopy(objective.state_dict()))
        torch.testing.assert_close(
            train(resumed.model, again, range(2, 4)), train(undisturbed.model, objective, range(2, 4)), rtol=0, atol=0
        )


@pytest.mark.parametrize("name", ON_MAPS_OF_IMAGES)
class TestInAStage:
    def test_is_a_stage_of_a_recipe(self, name: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
        teacher = new_artifact(seed=1, width=16)
        context = new_context(Teacher(teacher))
        stage = Distill.model_validate({"student": {"from": "teacher", "width": 0.5}, "knowledge": [name], "epochs": 1})
        student = stage.run(teacher, context)
        assert set(student.model.state_dict()) == set(student.blueprint.build().state_dict())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.model.modules())
