"""Facts about masked generative distillation."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from nets import Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor

from potstill.stages.knowledge.feature.mgd import MaskedGeneration, blotted
from potstill.stages.knowledge.method import Term
from potstill.stages.stage import Context

NewContext = Callable[..., Context]
What = Literal["channels", "places"]


class TestBlotting:
    @pytest.mark.parametrize(("what", "axes"), [("channels", (2, 3)), ("places", (1,))])
    def test_leaves_whole_channels_or_places_as_they_are_or_zero(self, what: What, axes: tuple[int, ...]) -> None:
        maps = draws(40, 8, 5, 6)
        found = blotted(maps, 0.3, what)
        kept = (found == maps).all(axes)
        assert (kept | (found == 0).all(axes)).all()
        assert float(kept.double().mean()) == pytest.approx(0.7, abs=0.08)
        assert not kept.all(0).any(), "each sample has draws of its own"

    def test_is_drawn_anew_by_the_global_generator(self) -> None:
        maps = draws(4, 8, 5, 6)
        torch.manual_seed(3)
        first, second = blotted(maps, 0.5, "channels"), blotted(maps, 0.5, "channels")
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        assert torch.equal(blotted(maps, 0.5, "channels"), first)

    def test_of_nothing_changes_nothing(self) -> None:
        maps = draws(4, 8, 5, 6)
        assert torch.equal(blotted(maps, 0.0, "places"), maps)


def made(new_context: NewContext, method: MaskedGeneration, wide: int = 4) -> Term:
    return method.term(pair_of(Plain(), Plain(wide), new_context(), "mgd"))


def loss_of(term: Term, student: Tensor, teacher: Tensor) -> Tensor:
    (match,) = term.matches
    loss = term(observation(student_maps={match.student: student}, teacher_maps={match.teacher: teacher}))
    assert isinstance(loss, Tensor)
    return loss


def convolved(maps: list[list[list[float]]], weight: Tensor, bias: Tensor) -> list[list[list[float]]]:
    """A 3×3 convolution of one sample with zeros around it, by loops."""
    height, width = len(maps[0]), len(maps[0][0])
    return [
        [
            [
                float(bias[out])
                + sum(
                    float(weight[out, channel, dy + 1, dx + 1]) * maps[channel][y + dy][x + dx]
                    for channel in range(len(maps))
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    if 0 <= y + dy < height and 0 <= x + dx < width
                )
                for x in range(width)
            ]
            for y in range(height)
        ]
        for out in range(len(weight))
    ]


def test_equals_its_formula_by_loops(new_context: NewContext) -> None:
    """Two convolutions with a ReLU between, and the mean of the squared errors."""
    term = MaskedGeneration(masked=0).term(pair_of(Plain(2), Plain(2), new_context(), "mgd")).double()
    student, teacher = draws(2, 8, 3, 2), draws(2, 8, 3, 2, seed=1)
    state = {name.removeprefix("generators.0."): value for name, value in term.state_dict().items()}
    expected: list[float] = []
    for sample in range(2):
        hidden = convolved(student[sample].tolist(), state["0.weight"], state["0.bias"])
        hidden = [[[max(value, 0.0) for value in row] for row in rows] for rows in hidden]
        found = convolved(hidden, state["2.weight"], state["2.bias"])
        errors = (torch.tensor(found, dtype=torch.float64) - teacher[sample]).flatten().tolist()
        expected.append(sum(error**2 for error in errors) / len(errors))
    assert loss_of(term, student, teacher).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("what", ["channels", "places"])
@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(what: What, case: str, dtype: torch.dtype, new_context: NewContext) -> None:
    term = made(new_context, MaskedGeneration(mask=what), wide=6)
    student = HARD_CASES[case](4, 16, 4, 4)
    teacher = draws(len(student), 24, 4, 4, dtype=torch.float32)
    assert finite_gradients(lambda mine: loss_of(term, mine, teacher), student, dtype)


@pytest.mark.parametrize(("wide", "trained"), [(4, 0), (6, 3)])
def test_trains_generator_and_where_channels_differ_a_projector(
    wide: int, trained: int, new_context: NewContext
) -> None:
    term = made(new_context, MaskedGeneration(), wide)
    loss_of(
        term, draws(4, 16, 4, 4, dtype=torch.float32), draws(4, 4 * wide, 4, 4, dtype=torch.float32)
    ).mean().backward()
    assert len([name for name, _ in term.named_parameters() if name.startswith("projectors")]) == trained
    assert all(each.grad is not None for each in term.parameters())


def test_bridges_tokens_and_maps(new_context: NewContext) -> None:
    for student, teacher in ((Encoder(class_token=True), Plain()), (Plain(), Encoder(width=12)), (Encoder(), Plain(2))):
        term = MaskedGeneration().term(pair_of(student, teacher, new_context(), "mgd"))
        (match,) = term.matches
        mine = draws(*match.student_shape, dtype=torch.float32)
        loss = loss_of(term, mine, draws(*match.teacher_shape, dtype=torch.float32))
        assert loss.shape == (2,)
        assert torch.isfinite(loss).all()
