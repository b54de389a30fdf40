"""Facts about activation boundaries."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.feature.ab import ActivationBoundaries, wrong_side
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def by_loops(student: list[float], teacher: list[float], margin: float) -> float:
    """Of one sample, with the indicator ρ of the paper."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        rho = 1.0 if t > 0 else 0.0
        total += (rho * max(margin - s, 0) + (1 - rho) * max(margin + s, 0)) ** 2
    return total / len(student)


@given(seed=st.integers(0, 1000), margin=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_equals_its_formula_by_loops(seed: int, margin: float) -> None:
    student, teacher = draws(3, 4, 2, 2, seed=seed), draws(3, 4, 2, 2, seed=seed + 1)
    teacher[0, 0] = 0.0  # not active
    rows = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    expected = [by_loops(*each, margin) for each in rows]
    assert wrong_side(student, teacher, margin).tolist() == pytest.approx(expected, rel=1e-9)


def test_is_zero_for_a_student_beyond_the_margin_on_the_teachers_side() -> None:
    teacher = draws(2, 3, 4, 4)
    assert wrong_side(1.5 * teacher.sign(), teacher, 1.5).tolist() == [0, 0]


def test_takes_no_notice_of_the_teachers_strength() -> None:
    student, teacher = draws(2, 3, 4, 4), draws(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(wrong_side(student, 100 * teacher, 1), wrong_side(student, teacher, 1))


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](3, 4, 5, 5)
    teacher = draws(len(student), 4, 5, 5, seed=1, dtype=torch.float32)
    assert finite_gradients(partial(wrong_side, teacher=teacher, margin=1.0), student, dtype)


class TestTaps:
    def test_are_before_the_activations_and_bridged(self, new_context: NewContext) -> None:
        term = ActivationBoundaries().term(pair_of(Plain(relu="inplace"), Plain(6), new_context(), "ab"))
        assert [str(match) for match in term.matches] == [
            f"stage{n}.relu:input → stage{n}.relu:input" for n in (1, 2, 3)
        ]
        maps = {match.student: draws(*match.student_shape, dtype=torch.float32) for match in term.matches}
        theirs = {match.teacher: draws(*match.teacher_shape, dtype=torch.float32) for match in term.matches}
        loss = term(observation(student_maps=maps, teacher_maps=theirs))
        assert isinstance(loss, torch.Tensor)
        assert loss.shape == (2,)
        loss.mean().backward()
        assert all(each.grad is not None and each.grad.any() for each in term.parameters() if each.ndim == 4)

    def test_named_ones_are_taken_as_they_are(self, new_context: NewContext) -> None:
        pair = pair_of(Encoder(), Encoder(width=12), new_context(), "ab")
        term = ActivationBoundaries(layers="blocks.*.mlp.1:input").term(pair)
        assert [match.teacher for match in term.matches] == ["blocks.0.mlp.1:input", "blocks.1.mlp.1:input"]

    def test_are_refused_where_no_module_shows_them(self, new_context: NewContext) -> None:
        context = new_context()
        with pytest.raises(StageError, match=r"`ab`: the teacher gives no values below zero.*can serve.*`at`"):
            ActivationBoundaries().term(pair_of(Plain(), Plain(relu="function"), context, "ab"))
        with pytest.raises(StageError, match=r"`ab`: .*finds 0 corresponding layers with maps.*name the layers"):
            ActivationBoundaries().term(pair_of(Encoder(), Encoder(), context, "ab"))
