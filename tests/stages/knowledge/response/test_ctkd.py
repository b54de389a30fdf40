"""Facts about soft targets at a learnt temperature."""

import math
from typing import Any, Literal

import pytest
import torch
from by_hand import kl, softmax
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor

from potstill.stages.knowledge.response.ctkd import (
    LearntTemperature,
    _LearntTemperatureTerm,
    reversed_gradient,
    soft_targets_at,
)

Scope = Literal["global", "instance"]
SCOPES: tuple[Scope, ...] = ("global", "instance")


def term_of(scope: Scope = "global", classes: int = 5, **settings: Any) -> _LearntTemperatureTerm:
    torch.manual_seed(0)
    return _LearntTemperatureTerm(LearntTemperature(scope=scope, **settings), classes)


def test_each_sample_has_the_loss_at_its_temperature() -> None:
    student, teacher, temperature = draws(4, 5), draws(4, 5, seed=1), torch.tensor([1.0, 2.0, 5.0, 20.0]).double()
    expected = [
        t**2 * kl(softmax(theirs, t), softmax(mine, t))
        for mine, theirs, t in zip(student.tolist(), teacher.tolist(), temperature.tolist(), strict=True)
    ]
    assert soft_targets_at(student, teacher, temperature).tolist() == pytest.approx(expected, rel=1e-9)
    at_two = soft_targets_at(student, teacher, torch.tensor(2.0).double())
    assert float(at_two[1]) == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize("scope", SCOPES)
def test_temperatures_stay_between_their_bounds(scope: Scope) -> None:
    term = term_of(scope, lowest=2, span=6)
    for parameter in term.parameters():
        torch.nn.init.normal_(parameter, std=3)
    found = term.temperature(100 * draws(64, 5, dtype=torch.float32), draws(64, 5, dtype=torch.float32))
    assert bool(((found >= 2) & (found <= 8)).all())


def test_a_reversed_gradient_leaves_the_value() -> None:
    value = torch.tensor(0.1, requires_grad=True)
    turned = reversed_gradient(value, 0.3)
    assert float(turned.detach()) == float(value.detach())
    turned.backward()
    assert float(value.grad if value.grad is not None else 0) == pytest.approx(-0.3)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_down_the_loss_makes_the_temperature_raise_it(scope: Scope) -> None:
    """The student lowers the loss; the temperature, by the same optimizer, raises it."""
    student, teacher = draws(16, 5, dtype=torch.float32), 3 * draws(16, 5, seed=1, dtype=torch.float32)
    term = term_of(scope)
    seen = observation(student=student, teacher=teacher, step=9)
    before = term(seen).mean()
    before.backward()
    with torch.no_grad():
        for parameter in term.parameters():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad / parameter.grad.norm().clamp(min=1e-9)
    assert bool(term(seen).mean() > before)


def test_the_temperature_learns_more_and_more() -> None:
    method = LearntTemperature(curriculum=0.4)
    expected = [0, (1 - math.cos(math.pi / 4)) / 2, 0.5, 1, 1]
    assert [method.strength(p) for p in (0, 0.1, 0.2, 0.4, 0.9)] == pytest.approx(expected)
    assert LearntTemperature(curriculum=0).strength(0) == 1


def test_the_student_does_not_learn_to_move_its_samples_temperatures() -> None:
    """Its gradient is that at a temperature which is given."""
    student, teacher = draws(8, 5, dtype=torch.float32), draws(8, 5, seed=1, dtype=torch.float32)
    term = term_of("instance")
    mine, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    term(observation(student=mine, teacher=teacher, step=9)).sum().backward()
    soft_targets_at(plain, teacher, term.temperature(student, teacher).detach()).sum().backward()
    torch.testing.assert_close(mine.grad, plain.grad)


@pytest.mark.parametrize("scope", SCOPES)
def test_standardized_takes_no_notice_of_shift_and_scale(scope: Scope) -> None:
    student, teacher = draws(8, 5, dtype=torch.float32), draws(8, 5, seed=1, dtype=torch.float32)
    term = term_of(scope, standardize=True)
    moved = term(observation(student=3 * student + 1, teacher=0.5 * teacher - 2))
    torch.testing.assert_close(moved, term(observation(student=student, teacher=teacher)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_temperature_survives_a_resume(scope: Scope) -> None:
    term, other = term_of(scope), term_of(scope)
    for parameter in term.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(term.state_dict())
    student, teacher = draws(8, 5, dtype=torch.float32), draws(8, 5, seed=1, dtype=torch.float32)
    torch.testing.assert_close(other.temperature(student, teacher), term.temperature(student, teacher), rtol=0, atol=0)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bears_every_student(scope: Scope, case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](8, 5)
    teacher, term = draws(len(student), 5, dtype=torch.float32), term_of(scope)

    def loss(logits: Tensor) -> Tensor:
        return term(observation(student=logits, teacher=teacher, step=9))

    assert finite_gradients(loss, student, dtype)
    loss(student.to(dtype).float()).mean().backward()
    assert all(
        parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) for parameter in term.parameters()
    )
