"""Facts about attentive feature distillation."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from nets import Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation

from potstill.stages.knowledge.feature.afd import AttentiveFeatures, ChannelAttention, attended_distance
from potstill.stages.stage import Context

NewContext = Callable[..., Context]
Rows = list[list[float]]


def by_loops(student: Rows, teacher: Rows, attention: list[float]) -> float:
    """Of one sample; a row of places for each channel."""

    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in row))
        return [value / length for value in row]

    total = 0.0
    for mine, theirs, rho in zip(student, teacher, attention, strict=True):
        total += rho * sum((a - b) ** 2 for a, b in zip(unit(mine), unit(theirs), strict=True)) / len(mine)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_equals_its_formula_by_loops(seed: int) -> None:
    student, teacher = draws(2, 6, 3, seed=seed), draws(2, 6, 3, seed=seed + 10)
    attention = draws(2, 3, seed=seed + 20).softmax(1)
    rows = zip(student.mT.tolist(), teacher.mT.tolist(), attention.tolist(), strict=True)
    expected = [by_loops(*each) for each in rows]
    assert attended_distance(student, teacher, attention).tolist() == pytest.approx(expected, rel=1e-9)


def test_takes_no_notice_of_channels_scales() -> None:
    tokens, attention = draws(2, 6, 3), draws(2, 3).softmax(1)
    scales = torch.tensor([0.1, 1.0, 9.0])
    assert attended_distance(scales * tokens, tokens, attention).tolist() == pytest.approx([0, 0], abs=1e-12)


class TestChannelAttention:
    def test_is_a_share_of_sigmoids(self) -> None:
        attend = ChannelAttention(5).double()
        tokens = draws(3, 4, 5)
        for found, squeezed in zip(attend(tokens).tolist(), tokens.mean(1), strict=True):
            gates = [1 / (1 + math.exp(-x)) for x in attend.excite(squeezed).tolist()]
            assert found == pytest.approx([gate / sum(gates) for gate in gates], rel=1e-9)

    def test_sums_to_one_where_all_sigmoids_vanish(self) -> None:
        attend = ChannelAttention(5)
        with torch.no_grad():
            attend.excite[-1].bias.fill_(-1000)
        assert attend(draws(3, 4, 5, dtype=torch.float32)).sum(1).tolist() == pytest.approx([1, 1, 1])

    def test_turns_to_the_channels_that_the_student_has_learnt(self) -> None:
        """The loss trains it, too."""
        torch.manual_seed(0)
        attend = ChannelAttention(4)
        teacher = draws(8, 6, 4, dtype=torch.float32)
        student = torch.cat([teacher[:, :, :1], -teacher[:, :, 1:]], 2)
        optimizer = torch.optim.Adam(attend.parameters(), lr=0.05)
        for _ in range(30):
            loss = attended_distance(student, teacher, attend(teacher)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert attend(teacher)[:, 0].min() > 0.5


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(case: str, dtype: torch.dtype) -> None:
    student = HARD_CASES[case](3, 9, 4)
    teacher = draws(len(student), 9, 4, seed=1, dtype=torch.float32)
    attention = torch.full((len(student), 4), 0.25)
    assert finite_gradients(partial(attended_distance, teacher=teacher, attention=attention), student, dtype)
    zeros = torch.zeros_like(teacher)
    assert finite_gradients(partial(attended_distance, teacher=zeros, attention=attention), 1e-20 * student, dtype)


@pytest.mark.parametrize(("wide", "trained"), [(4, 0), (6, 9)])
def test_trains_projectors_where_channels_differ(wide: int, trained: int, new_context: NewContext) -> None:
    term = AttentiveFeatures().term(pair_of(Plain(), Plain(wide), new_context(), "afd"))
    assert len([name for name, _ in term.named_parameters() if name.startswith("projectors")]) == trained


def test_bridges_tokens_and_maps(new_context: NewContext) -> None:
    for student, teacher in ((Encoder(class_token=True), Plain()), (Plain(), Encoder(width=12)), (Plain(), Encoder())):
        term = AttentiveFeatures().term(pair_of(student, teacher, new_context(), "afd"))
        seen = observation(
            student_maps={each.student: draws(*each.student_shape, dtype=torch.float32) for each in term.matches},
            teacher_maps={each.teacher: draws(*each.teacher_shape, dtype=torch.float32) for each in term.matches},
        )
        loss = term(seen)
        assert isinstance(loss, torch.Tensor)
        assert loss.shape == (2,)
        assert torch.isfinite(loss).all()
