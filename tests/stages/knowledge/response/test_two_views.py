"""Facts about the methods that compare a weak and a strong view of each sample."""

from typing import Any, cast

import pytest
import torch
from by_hand import kl, mean, softmax
from observations import HARD_CASES, draws, finite_gradients, labels, observation
from torch import Tensor

from potstill.stages.knowledge.method import LogitMethod, Observation
from potstill.stages.knowledge.response.crld import CrossViewTargets
from potstill.stages.knowledge.response.mlkd import MultiLevelPredictions

METHODS = (MultiLevelPredictions(), CrossViewTargets())
Rows = list[list[float]]


def loss_of(method: LogitMethod, seen: Observation) -> Tensor:
    found = method.term(cast(Any, None))(seen)
    assert isinstance(found, Tensor)
    return found


def two_views(samples: int = 5, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's weak and strong logits, then the teacher's."""
    found = [scale * draws(samples, classes, seed=4 * seed + at) for at, scale in enumerate((2, 2, 3, 3))]
    return found[0], found[1], found[2], found[3]


def seen_of(weak: Tensor, strong: Tensor, teacher_weak: Tensor, teacher_strong: Tensor) -> Observation:
    return observation(student=weak, teacher=teacher_weak, strong=(strong, teacher_strong), target=labels(*weak.shape))


def likeness_by_hand(mine: Rows, theirs: Rows) -> float:
    """The sum over all pairs of rows of the squared difference of their inner products."""
    total = 0.0
    for i in range(len(mine)):
        for j in range(len(mine)):
            student = sum(a * b for a, b in zip(mine[i], mine[j], strict=True))
            teacher = sum(a * b for a, b in zip(theirs[i], theirs[j], strict=True))
            total += (teacher - student) ** 2
    return total


def mlkd_by_hand(student: Rows, teacher: Rows) -> float:
    total = 0.0
    for temperature in (2, 3, 4, 5, 6):
        mine = [softmax(row, temperature) for row in student]
        theirs = [softmax(row, temperature) for row in teacher]
        total += temperature**2 * mean([kl(t, s) for s, t in zip(mine, theirs, strict=True)])
        total += likeness_by_hand(mine, theirs) / len(mine)
        columns = [list(column) for column in zip(*mine, strict=True)], [list(c) for c in zip(*theirs, strict=True)]
        total += likeness_by_hand(*columns) / len(columns[0])
    return total


def soft(student: list[float], teacher: list[float]) -> float:
    return 4**2 * kl(softmax(teacher, 4), softmax(student, 4))


class TestMultiLevelPredictions:
    def test_are_the_sum_of_the_formula_over_both_views(self) -> None:
        for seed in range(3):
            weak, strong, teacher_weak, teacher_strong = two_views(seed=seed)
            expected = mlkd_by_hand(weak.tolist(), teacher_weak.tolist())
            expected += mlkd_by_hand(strong.tolist(), teacher_strong.tolist())
            found = loss_of(MultiLevelPredictions(), seen_of(weak, strong, teacher_weak, teacher_strong))
            assert float(found) == pytest.approx(expected, rel=1e-9)

    def test_every_part_of_both_views_reaches_the_student(self) -> None:
        """The official code leaves the strong view out of some parts."""
        weak, strong, teacher_weak, teacher_strong = (each.requires_grad_() for each in two_views())
        loss_of(
            MultiLevelPredictions(), seen_of(weak, strong, teacher_weak.detach(), teacher_strong.detach())
        ).backward()
        one = weak.detach().clone().requires_grad_()
        MultiLevelPredictions().loss(one, teacher_weak.detach(), labels(5, 4)).backward()
        torch.testing.assert_close(weak.grad, one.grad)
        other = strong.detach().clone().requires_grad_()
        MultiLevelPredictions().loss(other, teacher_strong.detach(), labels(5, 4)).backward()
        torch.testing.assert_close(strong.grad, other.grad)


class TestCrossViewTargets:
    @pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.9, 0.8), (1.0, 0.0), (0.0, 1.0)])
    def test_equal_the_formula_in_each_sample(self, thresholds: tuple[float, float]) -> None:
        for seed in range(3):
            views = two_views(seed=seed)
            expected: list[float] = []
            for weak, strong, teacher_weak, teacher_strong in zip(*(view.tolist() for view in views), strict=True):
                value = 0.0
                if max(softmax(teacher_weak)) >= thresholds[0]:
                    value += 2 * (soft(weak, teacher_weak) + soft(strong, teacher_strong))
                if max(softmax(teacher_strong)) >= thresholds[1]:
                    value += 0.5 * (soft(strong, teacher_weak) + soft(weak, teacher_strong))
                expected.append(value)
            method = CrossViewTargets(weak_confidence=thresholds[0], strong_confidence=thresholds[1])
            assert loss_of(method, seen_of(*views)).tolist() == pytest.approx(expected, rel=1e-9)

    def test_confidence_is_that_of_logits_as_they_are(self) -> None:
        """Standardised logits of four classes never reach 0.9."""
        weak, strong, teacher_weak, teacher_strong = two_views()
        seen = seen_of(weak, strong, 9 * teacher_weak, 9 * teacher_strong)
        assert bool((loss_of(CrossViewTargets(standardize=True, across=0), seen) > 0).any())


@pytest.mark.parametrize("method", METHODS, ids=["mlkd", "crld"])
class TestBoth:
    def test_have_nothing_to_teach_a_student_that_equals_its_teacher_in_both_views(self, method: LogitMethod) -> None:
        _, _, teacher, _ = two_views()
        found = loss_of(method, seen_of(teacher, teacher, teacher, teacher))
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-9)

    def test_do_not_depend_on_the_order_of_the_batch(self, method: LogitMethod) -> None:
        views = two_views()
        order = [3, 0, 4, 1, 2]
        shuffled = loss_of(method, seen_of(*(view[order] for view in views)))
        torch.testing.assert_close(shuffled.mean(), loss_of(method, seen_of(*views)).mean())

    def test_standardized_take_no_notice_of_shift_and_scale(self, method: LogitMethod) -> None:
        changed = method.model_copy(update={"standardize": True})
        if isinstance(method, CrossViewTargets):  # confidence is meant to notice the scale
            changed = changed.model_copy(update={"weak_confidence": 0.0, "strong_confidence": 0.0})
        views = two_views()
        moved = loss_of(changed, seen_of(*(3 * view + 2 for view in views)))
        torch.testing.assert_close(moved, loss_of(changed, seen_of(*views)), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bear_every_student(self, method: LogitMethod, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](8, 5)
        teacher = 3 * draws(len(student), 5, dtype=torch.float32)

        def loss(logits: Tensor) -> Tensor:
            return loss_of(method, seen_of(logits, logits + 1, teacher, teacher.flip(1)))

        assert finite_gradients(loss, student, dtype)
