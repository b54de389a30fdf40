"""Facts about factor transfer."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nets import Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor

from potstill.stages.knowledge.feature.ft import FactorTransfer, Paraphraser, factor_distance
from potstill.stages.knowledge.method import Observation, Term
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def by_loops(student: list[float], teacher: list[float]) -> float:
    """Of one sample."""

    def unit(factor: list[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in factor))
        return [value / length for value in factor]

    pairs = list(zip(unit(student), unit(teacher), strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(3))
def test_equals_its_formula_by_loops(seed: int) -> None:
    student, teacher = draws(3, 2, 3, 4, seed=seed), draws(3, 2, 3, 4, seed=seed + 10)
    rows = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    assert factor_distance(student, teacher).tolist() == pytest.approx([by_loops(*each) for each in rows], rel=1e-9)


def test_takes_no_notice_of_the_factors_scales() -> None:
    factors = draws(3, 2, 3, 4)
    assert factor_distance(7 * factors, 0.1 * factors).tolist() == pytest.approx([0] * 3, abs=1e-15)


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](3, 4, 5, 5)
    teacher = draws(len(student), 4, 5, 5, seed=1, dtype=torch.float32)
    assert finite_gradients(partial(factor_distance, teacher=teacher), student, dtype)
    assert finite_gradients(partial(factor_distance, teacher=torch.zeros_like(teacher)), student, dtype)


def made(new_context: NewContext) -> tuple[Term, Observation]:
    """A term for the last maps of two networks, and random maps."""
    term = FactorTransfer().term(pair_of(Plain(), Plain(6), new_context(), "ft"))
    (match,) = term.matches
    mine = draws(4, *match.student_shape[1:], dtype=torch.float32)
    theirs = draws(4, *match.teacher_shape[1:], seed=1, dtype=torch.float32)
    return term, observation(student_maps={match.student: mine}, teacher_maps={match.teacher: theirs})


def taught(term: Term, seen: Observation) -> tuple[Tensor, Tensor]:
    found = term(seen)
    assert isinstance(found, tuple)
    return found


class TestParaphraser:
    def test_is_trained_by_its_reconstruction_alone(self, new_context: NewContext) -> None:
        term, seen = made(new_context)
        loss, own = taught(term, seen)
        paraphrasing = [each for name, each in term.named_parameters() if name.startswith("paraphrasers")]
        translating = [each for name, each in term.named_parameters() if name.startswith("translators")]
        assert len(paraphrasing) + len(translating) == len(list(term.parameters()))
        own.backward(retain_graph=True)
        assert all(each.grad is not None for each in paraphrasing)
        assert all(each.grad is None for each in translating)
        term.zero_grad()
        loss.mean().backward()
        assert all(each.grad is None for each in paraphrasing)
        assert all(each.grad is not None for each in translating)

    def test_its_term_is_the_mean_squared_error_of_the_teachers_maps(self, new_context: NewContext) -> None:
        term, seen = made(new_context)
        _, own = taught(term, seen)
        (maps,) = seen.teacher.maps.values()
        (paraphraser,) = term.get_submodule("paraphrasers").children()
        _, reconstruction = paraphraser(maps)
        torch.testing.assert_close(own, (reconstruction - maps).square().mean())

    def test_learns_to_reconstruct(self) -> None:
        torch.manual_seed(0)
        paraphraser = Paraphraser(4, 2)
        maps = draws(8, 2, 4, 4, dtype=torch.float32).relu().repeat(1, 2, 1, 1)  # two factors say it all
        optimizer = torch.optim.Adam(paraphraser.parameters(), lr=0.01)
        errors: list[float] = []
        for _ in range(60):
            error = (paraphraser(maps)[1] - maps).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.append(error.item())
        assert errors[-1] < 0.4 * errors[0]

    @pytest.mark.parametrize(("rate", "channels"), [(0.5, 12), (2.0, 48), (0.001, 1)])
    def test_has_factors_at_the_rate_asked_for(self, rate: float, channels: int, new_context: NewContext) -> None:
        term = FactorTransfer(rate=rate).term(pair_of(Plain(), Plain(6), new_context(), "ft"))
        (paraphraser,) = term.get_submodule("paraphrasers").children()
        factor, reconstruction = paraphraser(draws(2, 24, 4, 4, dtype=torch.float32))
        assert factor.shape == (2, channels, 4, 4)
        assert reconstruction.shape == (2, 24, 4, 4)


def test_bridges_tokens_and_maps(new_context: NewContext) -> None:
    for student, teacher in ((Encoder(class_token=True), Plain()), (Plain(), Encoder(width=12))):
        term = FactorTransfer().term(pair_of(student, teacher, new_context(), "ft"))
        (match,) = term.matches
        seen = observation(
            student_maps={match.student: draws(*match.student_shape, dtype=torch.float32)},
            teacher_maps={match.teacher: draws(*match.teacher_shape, dtype=torch.float32)},
        )
        loss, own = taught(term, seen)
        assert torch.isfinite(loss).all()
        assert own > 0
