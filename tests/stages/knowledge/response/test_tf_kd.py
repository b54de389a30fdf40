"""Facts about the teacher that is made by hand."""

import math
from typing import Any, cast

import pytest
import torch
from by_hand import kl, softmax
from observations import HARD_CASES, draws, finite_gradients, labels, observation
from torch import Tensor

from potstill.stages.knowledge.method import Term
from potstill.stages.knowledge.response.tf_kd import VirtualTeacher, virtual_logits


def term_of(**settings: Any) -> Term:
    return VirtualTeacher(**settings).term(cast(Any, None))


def test_each_sample_has_the_loss_of_the_formula() -> None:
    student, target = 2 * draws(6, 5), labels(6, 5)
    expected: list[float] = []
    for row, label in zip(student.tolist(), target.tolist(), strict=True):
        virtual = [0.9 if c == label else 0.1 / 4 for c in range(5)]
        powers = [p ** (1 / 20) for p in virtual]
        expected.append(20**2 * kl([power / sum(powers) for power in powers], softmax(row, 20)))
    found = term_of(correctness=0.9)(observation(student=student, target=target))
    assert isinstance(found, Tensor)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_virtual_teacher_finds_all_other_classes_alike() -> None:
    probabilities = virtual_logits(draws(1, 4), torch.tensor([2]), 0.99).softmax(1)
    assert probabilities[0].tolist() == pytest.approx([0.01 / 3, 0.01 / 3, 0.99, 0.01 / 3])


def test_a_student_as_sure_as_the_virtual_teacher_has_nothing_to_learn() -> None:
    target = labels(6, 5)
    student = torch.nn.functional.one_hot(target, 5).double() * math.log(0.99 / (0.01 / 4))
    found = term_of()(observation(student=student, target=target))
    torch.testing.assert_close(found, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)


def test_takes_no_notice_of_a_teacher() -> None:
    student, target = draws(6, 5), labels(6, 5)
    alone = term_of()(observation(student=student, target=target))
    taught = term_of()(observation(student=student, teacher=9 * draws(6, 5, seed=1), target=target))
    torch.testing.assert_close(alone, taught, rtol=0, atol=0)


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bears_every_student(case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](8, 5)
    target = labels(len(student), 5)
    term = term_of()

    def loss(logits: Tensor) -> Any:
        return term(observation(student=logits, target=target))

    assert finite_gradients(loss, student, dtype)
