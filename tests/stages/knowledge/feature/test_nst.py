"""Facts about neuron selectivity transfer."""

import math
from functools import partial

import pytest
import torch
from observations import HARD_CASES, draws, finite_gradients

from potstill.stages.knowledge.feature.nst import discrepancy

Rows = list[list[float]]

SIZES = {"fewer channels": (3, 4, 4, 3), "fewer places": (9, 10, 2, 3), "places between": (4, 9, 3, 2)}
"""Channels of student and teacher, height and width."""


def by_loops(student: Rows, teacher: Rows) -> float:
    """Of one sample: a row of places for each channel."""

    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in row))
        return [value / length for value in row]

    def kernels(some: Rows, others: Rows) -> float:
        return sum(sum(x * y for x, y in zip(a, b, strict=True)) ** 2 for a in some for b in others) / (
            len(some) * len(others)
        )

    mine, theirs = [unit(row) for row in student], [unit(row) for row in teacher]
    return kernels(theirs, theirs) + kernels(mine, mine) - 2 * kernels(mine, theirs)


@pytest.mark.parametrize(("mine", "theirs", "height", "width"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_its_formula_by_loops(mine: int, theirs: int, height: int, width: int, seed: int) -> None:
    student, teacher = draws(2, mine, height, width, seed=seed), draws(2, theirs, height, width, seed=seed + 10)
    rows = zip(student.flatten(2).tolist(), teacher.flatten(2).tolist(), strict=True)
    assert discrepancy(student, teacher).tolist() == pytest.approx([by_loops(*each) for each in rows], rel=1e-9)


@pytest.mark.parametrize("size", [2, 5])
def test_is_zero_for_scaled_repeated_and_reordered_channels(size: int) -> None:
    maps = draws(3, 6, size, size)
    scales = torch.tensor([1.0, 2.0, 0.5, 3.0, 7.0, 0.1], dtype=torch.float64)[:, None, None]
    student = (scales * maps)[:, [5, 0, 3, 1, 2, 4] * 2]
    assert discrepancy(student, maps).tolist() == pytest.approx([0] * 3, abs=1e-12)


def test_averages_to_the_smaller_size() -> None:
    teacher = draws(2, 3, 4, 6)
    student = teacher.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    assert discrepancy(student, teacher).tolist() == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("size", [2, 6])
@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(size: int, case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](4, 5, 6, 6)
    teacher = draws(len(student), 7, size, size, seed=1, dtype=torch.float32)
    assert finite_gradients(partial(discrepancy, teacher=teacher), student, dtype)
    assert finite_gradients(partial(discrepancy, teacher=torch.zeros_like(teacher)), student, dtype)
    assert finite_gradients(partial(discrepancy, teacher=teacher), 1e-20 * student, dtype)
