"""Facts about the correlation and the mutual information of features."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.relation.itrd import Information, correlation_loss, mutual_loss

NewPair = Callable[..., Pair]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "correlation": partial(correlation_loss, alpha=1.01),
    "mutual information": mutual_loss,
}


def correlation_by_loops(student: Tensor, teacher: Tensor, alpha: float) -> float:
    total = 0.0
    for mine, theirs in zip(student.T.tolist(), teacher.T.tolist(), strict=True):
        a, b = ([x - sum(column) / len(column) for x in column] for column in (mine, theirs))
        product = sum(x * y for x, y in zip(a, b, strict=True))
        correlation = product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
        total += abs(1 - correlation) ** (2 * alpha)
    return math.log2(total)


def mutual_by_loops(student: Tensor, teacher: Tensor) -> float:
    def cosines(rows: list[list[float]]) -> list[list[float]]:
        lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
        return [
            [sum(x * y for x, y in zip(a, b, strict=True)) / lengths[i] / lengths[j] for j, b in enumerate(rows)]
            for i, a in enumerate(rows)
        ]

    mine, theirs = cosines(student.tolist()), cosines(teacher.tolist())
    samples = range(len(mine))
    joint = [[mine[i][j] * theirs[i][j] for j in samples] for i in samples]

    def energy(matrix: list[list[float]]) -> float:
        trace = sum(matrix[i][i] for i in samples)
        return sum((value / trace) ** 2 for row in matrix for value in row)

    return energy(mine) - energy(joint)


class TestFormulas:
    @given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.6, 1.01, 1.5]))
    @settings(max_examples=20, deadline=None)
    def test_equal_a_reading_number_by_number(self, seed: int, alpha: float) -> None:
        student, teacher = draws(7, 4, seed=seed), draws(7, 4, seed=seed + 1)
        expected = correlation_by_loops(student, teacher, alpha)
        # What keeps the root and the logarithm from zero changes their arguments by 1e-8 and 1e-6.
        assert float(correlation_loss(student, teacher, alpha)) == pytest.approx(expected, abs=1e-5)
        wide = draws(7, 9, seed=seed + 2)
        assert float(mutual_loss(student, wide)) == pytest.approx(mutual_by_loops(student, wide))


class TestCorrelationLoss:
    def test_takes_no_notice_of_shift_and_scale_of_each_feature(self) -> None:
        student, teacher = draws(20, 4), draws(20, 4, seed=1)
        moved = student * torch.tensor([3.0, 0.2, 50.0, 1.0]) + torch.tensor([0.0, 7.0, -9.0, 1.0])
        found = correlation_loss(moved, teacher, 1.01)
        assert float(found) == pytest.approx(float(correlation_loss(student, teacher, 1.01)), abs=1e-5)

    def test_is_least_where_each_feature_follows_the_teacher_s(self) -> None:
        teacher = draws(20, 4, dtype=torch.float32).requires_grad_()
        least = correlation_loss(teacher, teacher.detach(), 1.01)
        assert float(least.detach()) == pytest.approx(math.log2(1e-6), abs=1e-3)
        losses = [
            float(correlation_loss(teacher.detach() + noise * draws(20, 4, seed=1).float(), teacher.detach(), 1.01))
            for noise in (0.1, 0.5, 2.0)
        ]
        assert float(least.detach()) < losses[0] < losses[1] < losses[2]
        (gradient,) = torch.autograd.grad(least, teacher)
        assert bool(torch.isfinite(gradient).all())


class TestMutualLoss:
    @given(seed=st.integers(0, 1000))
    @settings(max_examples=10, deadline=None)
    def test_is_between_zero_and_one(self, seed: int) -> None:
        found = float(mutual_loss(draws(6, 3, seed=seed), draws(6, 3, seed=seed + 1)))
        assert 0 <= found <= 1

    def test_is_zero_where_the_student_confuses_only_what_the_teacher_does(self) -> None:
        """Samples at right angles in the student, but for two that the teacher finds the same."""
        student = torch.eye(4)[[0, 0, 1, 2]]
        teacher = torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.0, 0.0], [3.0, 1.0]])
        assert float(mutual_loss(student, teacher)) == pytest.approx(0, abs=1e-6)
        assert float(mutual_loss(torch.ones(4, 3), teacher)) > 0.1


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hard_cases_are_borne(case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](6, 5)
    for teacher in (draws(len(student), 5, dtype=torch.float32), torch.zeros(len(student), 5)):
        for loss in LOSSES.values():
            assert finite_gradients(partial(loss, teacher=teacher), student, dtype)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_order_of_samples_does_not_matter(loss: Callable[..., Tensor]) -> None:
    student, teacher, order = draws(5, 4), draws(5, 4, seed=1), torch.tensor([3, 1, 4, 0, 2])
    assert float(loss(student[order], teacher[order])) == pytest.approx(float(loss(student, teacher)))


class TestTerm:
    def test_adds_both_of_the_student_brought_to_the_teacher_s_width(self, new_pair: NewPair) -> None:
        term = Information(correlation=3, mutual=5, alpha=1.2).term(new_pair())
        mine, theirs = draws(6, 32, dtype=torch.float32), draws(6, 64, dtype=torch.float32)
        loss = term(observation(student_maps={"linear:input": mine}, teacher_maps={"linear:input": theirs}))
        assert isinstance(loss, Tensor)
        loss.backward()
        parameters = dict(term.named_parameters())
        embedded = mine @ parameters["embedding.weight"].detach().T + parameters["embedding.bias"].detach()
        expected = 3 * correlation_loss(embedded, theirs, 1.2) + 5 * mutual_loss(embedded, theirs)
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
        assert all(each.grad is not None and bool(each.grad.any()) for each in parameters.values())

    def test_a_network_without_a_linear_head_is_refused(self, new_pair: NewPair, without_maps: nn.Module) -> None:
        with pytest.raises(StageError, match=r"student does not end in a linear layer.*Methods that can serve.*`dkd`"):
            Information().term(new_pair(without_maps))
