"""Facts about variational information distillation."""

import math
from functools import partial

import pytest
import torch
from observations import HARD_CASES, draws, finite_gradients

from potstill.stages.knowledge.feature.vid import LEAST_VARIANCE, Gaussian, surprise

Rows = list[list[float]]


def by_loops(mean: Rows, teacher: Rows, variances: list[float]) -> float:
    """Of one sample: minus the logarithm of the normal density, less its constant, averaged."""
    total, count = 0.0, 0
    for at_place, wanted in zip(mean, teacher, strict=True):
        for mu, t, v in zip(at_place, wanted, variances, strict=True):
            density = math.exp(-((t - mu) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            total -= math.log(density * math.sqrt(2 * math.pi))
            count += 1
    return total / count


@pytest.mark.parametrize("seed", range(3))
def test_equals_its_formula_by_loops(seed: int) -> None:
    mean, teacher = draws(2, 6, 3, seed=seed), draws(2, 6, 3, seed=seed + 10)
    variance = draws(3, seed=seed + 20).exp()
    expected = [by_loops(*each, variance.tolist()) for each in zip(mean.tolist(), teacher.tolist(), strict=True)]
    assert surprise(mean, teacher, variance).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0, 800.0])
def test_every_channel_starts_with_the_variance_asked_for(variance: float) -> None:
    gaussian = Gaussian(4, 3, variance).double()
    student, teacher = draws(2, 5, 4), draws(2, 5, 3, seed=1)
    expected = surprise(gaussian.mean(student), teacher, torch.full((3,), variance, dtype=torch.float64))
    torch.testing.assert_close(gaussian(student, teacher), expected, rtol=1e-4, atol=0)


def test_is_least_at_the_variance_of_the_errors() -> None:
    mean, teacher = draws(4, 50, 2), 3 * draws(4, 50, 2, seed=1)
    errors = (teacher - mean).square().mean((0, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(surprise(mean, teacher, errors).mean(), errors)
    assert gradient.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_trains_mean_and_variance() -> None:
    gaussian = Gaussian(4, 3, 5.0)
    student, teacher = draws(2, 5, 4, dtype=torch.float32), draws(2, 5, 3, seed=1, dtype=torch.float32)
    gaussian(student, teacher).mean().backward()
    assert all(each.grad is not None and each.grad.any() for each in gaussian.parameters())


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(case: str, dtype: torch.dtype) -> None:
    gaussian = Gaussian(4, 3, 5.0)
    student = HARD_CASES[case](3, 5, 4)
    teacher = draws(len(student), 5, 3, seed=1, dtype=torch.float32)
    assert finite_gradients(partial(gaussian, teacher=teacher), student, dtype)
    gaussian.alpha.data.fill_(-200)  # as small as variances become
    assert finite_gradients(partial(gaussian, teacher=teacher), student, dtype)
    assert float(surprise(teacher, teacher, torch.full((3,), LEAST_VARIANCE)).mean()) < 0
