"""Facts about attention transfer."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nets import ConvHead, Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.feature.at import AttentionTransfer, attention_distance
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def by_loops(student: list[list[list[float]]], teacher: list[list[list[float]]], p: float) -> float:
    """Of one sample of equal size: channels of rows of places."""

    def unit(maps: list[list[list[float]]]) -> list[float]:
        places = [
            sum(abs(channel[y][x]) ** p for channel in maps)
            for y in range(len(maps[0]))
            for x in range(len(maps[0][0]))
        ]
        length = math.sqrt(sum(value * value for value in places))
        return [value / length for value in places]

    mine, theirs = unit(student), unit(teacher)
    return sum((a - b) ** 2 for a, b in zip(mine, theirs, strict=True)) / len(mine)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("seed", range(3))
def test_equals_its_formula_by_loops(p: float, seed: int) -> None:
    student, teacher = draws(3, 4, 3, 5, seed=seed), draws(3, 6, 3, 5, seed=seed + 10)
    expected = [by_loops(*each, p) for each in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert attention_distance(student, teacher, p).tolist() == pytest.approx(expected, rel=1e-9)


def test_is_zero_for_scaled_and_reordered_channels() -> None:
    maps = draws(3, 4, 5, 5)
    assert attention_distance(-7 * maps[:, [2, 0, 3, 1]], maps).tolist() == pytest.approx([0] * 3, abs=1e-15)


def test_averages_the_larger_attention() -> None:
    """Not the activations, whose signs would cancel."""
    teacher = draws(2, 3, 4, 4)
    checkers = torch.ones(4, 4, dtype=torch.float64).triu().mul(2).sub(1)
    assert attention_distance(teacher * checkers, teacher.abs()).tolist() == pytest.approx([0, 0], abs=1e-15)
    small = teacher.square().reshape(2, 3, 2, 2, 2, 2).mean((3, 5)).sqrt()
    assert attention_distance(small, teacher * checkers).tolist() == pytest.approx([0, 0], abs=1e-15)


def test_powers_of_activations_of_any_size_stay_in_range() -> None:
    student, teacher = draws(2, 3, 4, 4, dtype=torch.float32), draws(2, 3, 4, 4, seed=1, dtype=torch.float32)
    expected = attention_distance(student, teacher, 8)
    torch.testing.assert_close(attention_distance(1e7 * student, 1e-3 * teacher, 8), expected)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(p: float, case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](4, 3, 6, 6)
    teacher = draws(len(student), 5, 4, 4, seed=1, dtype=torch.float32)
    assert finite_gradients(partial(attention_distance, teacher=teacher, p=p), student, dtype)
    assert finite_gradients(partial(attention_distance, teacher=torch.zeros_like(teacher), p=p), student, dtype)


def test_reads_tokens_as_grids_of_patches(new_context: NewContext) -> None:
    pair = pair_of(Encoder(depth=3, class_token=True), Plain(), new_context(), "at")
    term = AttentionTransfer().term(pair)
    taps = [(match.student, match.teacher) for match in term.matches]
    maps = draws(2, 5, 4, 4)
    tokens = torch.cat([draws(2, 1, 5, seed=1), maps.flatten(2).transpose(1, 2)], 1)
    seen = observation(
        student_maps={mine: tokens for mine, _ in taps}, teacher_maps={theirs: maps for _, theirs in taps}
    )
    assert term(seen).tolist() == pytest.approx([0, 0], abs=1e-15)


def test_refuses_layers_that_are_vectors(new_context: NewContext) -> None:
    pair = pair_of(Plain(), Plain(), new_context(), "at")
    with pytest.raises(StageError, match=r"`at`: takes maps or square grids.*`head` of the student gives \(2, 4\)"):
        AttentionTransfer(layers="head").term(pair)
    assert len(AttentionTransfer().term(pair_of(ConvHead(), Plain(), new_context(), "at")).matches) == 1
