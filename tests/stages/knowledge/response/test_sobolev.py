"""Facts about the matching of input gradients."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from observations import draws, labels, observation
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.response.sobolev import InputGradients, gradients_of, squared_distance

NewPair = Callable[..., Pair]
NewArtifact = Callable[..., Artifact]


class TestSquaredDistance:
    def test_equals_the_formula(self) -> None:
        student, teacher = draws(5, 7), draws(5, 7, seed=1)
        expected: list[float] = []
        for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
            lengths = [math.sqrt(sum(x * x for x in row)) for row in (mine, theirs)]
            expected.append(sum((s / lengths[0] - t / lengths[1]) ** 2 for s, t in zip(mine, theirs, strict=True)))
        assert squared_distance(student, teacher).tolist() == pytest.approx(expected)

    def test_takes_no_notice_of_length(self) -> None:
        student, teacher = draws(5, 7), draws(5, 7, seed=1)
        torch.testing.assert_close(squared_distance(9 * student, teacher / 5), squared_distance(student, teacher))
        torch.testing.assert_close(squared_distance(9 * student, student), torch.zeros(5).double())
        torch.testing.assert_close(squared_distance(-student, student), torch.full((5,), 4.0).double())

    @pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
    def test_bears_gradients_of_any_length(self, scale: float) -> None:
        student = (scale * draws(5, 7, dtype=torch.float32)).requires_grad_()
        loss = squared_distance(student, draws(5, 7, seed=1, dtype=torch.float32)).mean()
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool(torch.isfinite(loss))
        assert bool(torch.isfinite(gradient).all())


def test_gradients_are_the_slopes_of_the_labels_logits() -> None:
    """Central differences of a small network of two inputs, one number at a time."""
    weights, target = draws(3, 5), torch.tensor([2, 0])

    def logits(x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(torch.cat([x, y], 1)) @ weights.T

    inputs = {"x": draws(2, 3).requires_grad_(), "y": draws(2, 2, seed=1).requires_grad_()}
    found = gradients_of(logits(*inputs.values()), inputs, target)
    row = torch.cat([value.detach() for value in inputs.values()], 1)
    for sample, label in enumerate(target.tolist()):
        for at in range(5):
            step = 1e-5 * functional.one_hot(torch.tensor(at), 5)
            up, down = (torch.tanh(row[sample] + sign * step) @ weights[label] for sign in (1, -1))
            assert float(found[sample, at]) == pytest.approx(float(up - down) / 2e-5, rel=1e-4, abs=1e-8)


def seen_of(student: nn.Module, teacher: nn.Module, samples: int = 4) -> Any:
    image = draws(samples, 1, 16, 16, dtype=torch.float32)
    frozen = deepcopy(teacher).eval().requires_grad_(requires_grad=False)
    return observation(
        student=torch.zeros(samples, 4),
        target=labels(samples, 4),
        inputs={"image": image},
        student_model=student,
        teacher_model=frozen,
    )


class TestTerm:
    def test_is_zero_for_a_copy_of_the_teacher(self, new_pair: NewPair, new_artifact: NewArtifact) -> None:
        teacher = new_artifact().model
        loss = InputGradients().term(new_pair(teacher, teacher))(seen_of(deepcopy(teacher).eval(), teacher))
        assert isinstance(loss, Tensor)
        torch.testing.assert_close(loss, torch.zeros(4), rtol=0, atol=1e-5)

    def test_a_step_down_the_loss_turns_the_student_s_gradients(
        self, new_pair: NewPair, new_artifact: NewArtifact
    ) -> None:
        student, teacher = new_artifact(seed=1).model.eval(), new_artifact(seed=2, width=16, depth=14).model
        term, seen = InputGradients().term(new_pair(student, teacher)), seen_of(student, teacher)
        loss = term(seen)
        assert isinstance(loss, Tensor)
        loss.mean().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad
        after = term(seen)
        assert isinstance(after, Tensor)
        assert bool(after.mean() < loss.mean())

    def test_leaves_no_trace_in_either_network(self, new_pair: NewPair, new_artifact: NewArtifact) -> None:
        student, teacher = new_artifact(seed=1).model.train(), new_artifact(seed=2).model
        seen = seen_of(student, teacher)
        before = deepcopy((student.state_dict(), seen.teacher_model.state_dict()))
        InputGradients().term(new_pair(student, teacher))(seen)
        for state, model in zip(before, (student, seen.teacher_model), strict=True):
            assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert student.training
        assert not seen.teacher_model.training
        assert not seen.batch.inputs["image"].requires_grad

    def test_differentiates_fused_attention_twice(self, new_pair: NewPair) -> None:
        student, teacher = Attention(), Attention()
        loss = InputGradients().term(new_pair(student, teacher))(seen_of(student, teacher))
        assert isinstance(loss, Tensor)
        loss.mean().backward()
        assert all(parameter.grad is not None for parameter in student.embed.parameters() if parameter.ndim > 1)

    def test_inputs_that_are_class_numbers_are_refused(self, new_pair: NewPair) -> None:
        model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 4))
        pair = new_pair(model, model, {"tokens": torch.zeros(2, 3, dtype=torch.int64)})
        with pytest.raises(StageError, match=r"real numbers.*`kd`"):
            InputGradients().term(pair)


class Attention(nn.Module):
    """Rows of a 1×16×16 image as tokens of one head of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 24)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        query, key, value = self.embed(image).chunk(3, -1)
        return self.head(functional.scaled_dot_product_attention(query, key, value).mean((1, 2)))
