"""Facts about the overhaul of feature distillation."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.feature.ofd import (
    FeatureOverhaul,
    batch_margins,
    margin_relu,
    negative_means,
    partial_distance,
)
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def distance_by_loops(student: list[float], teacher: list[float]) -> float:
    """Of one sample."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if not s <= t <= 0:
            total += (t - s) ** 2
    return total / len(student)


def negative_mean_by_sums(mean: float, deviation: float) -> float:
    """The integral of x times the normal density below zero over that of the density, by the midpoint rule."""
    low = min(mean, 0.0) - 12 * deviation
    step = -low / 40_000
    above = below = 0.0
    for number in range(40_000):
        x = low + (number + 0.5) * step
        density = math.exp(-(((x - mean) / deviation) ** 2) / 2 + min(max(mean, 0) / deviation, 12) ** 2 / 2)
        above, below = above + x * density, below + density
    return above / below


class TestPartialDistance:
    @given(seed=st.integers(0, 1000))
    @settings(max_examples=25, deadline=None)
    def test_equals_its_formula_by_loops(self, seed: int) -> None:
        student, teacher = draws(3, 4, 2, 2, seed=seed), draws(3, 4, 2, 2, seed=seed + 1)
        teacher[0, 0] = 0.0
        rows = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
        expected = [distance_by_loops(*each) for each in rows]
        assert partial_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-9)

    def test_is_zero_for_equal_maps_and_lower_ones_where_the_teacher_is_negative(self) -> None:
        teacher = draws(3, 4, 2, 2)
        assert partial_distance(teacher, teacher).tolist() == [0, 0, 0]
        assert partial_distance(torch.where(teacher <= 0, teacher - 5, teacher), teacher).tolist() == [0, 0, 0]
        assert partial_distance(torch.where(teacher > 0, teacher - 5, teacher), teacher).min() > 1

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_has_finite_gradients(self, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](3, 4, 5, 5)
        teacher = draws(len(student), 4, 5, 5, seed=1, dtype=torch.float32)
        assert finite_gradients(partial(partial_distance, teacher=teacher), student, dtype)


class TestMargins:
    @pytest.mark.parametrize("mean", [-40.0, -3.0, -0.5, 0.0, 0.5, 3.0, 8.0])
    @pytest.mark.parametrize("deviation", [0.5, 2.0])
    def test_of_a_batch_norm_are_the_means_of_negative_values(self, mean: float, deviation: float) -> None:
        found = negative_means(torch.tensor([mean]).double(), torch.tensor([deviation]).double())
        assert float(found) == pytest.approx(negative_mean_by_sums(mean, deviation), rel=1e-4)

    def test_are_finite_negative_and_rise_to_zero_where_negative_values_are_rare(self) -> None:
        means = torch.tensor([10.0, 20.0, 100.0, 1e6])
        found = negative_means(means, torch.ones(4))
        assert found[:2].tolist() == pytest.approx([-0.0981, -0.04975], rel=1e-3)  # -1/μ + 2/μ³ …
        assert (found <= 0).all()
        assert found.abs().max() < 0.1

    def test_of_channels_that_never_vary_are_their_value(self) -> None:
        assert negative_means(torch.tensor([-2.0, 0.0, 3.0]), torch.zeros(3)).tolist() == [-2, 0, 0]
        assert negative_means(torch.tensor([-2.0]), torch.tensor([1e-30])).tolist() == [-2]

    def test_of_a_batch_are_the_means_of_negative_values(self) -> None:
        maps = draws(4, 3, 5, 2)
        maps[:, 1] = maps[:, 1].abs()
        negative = [[x for x in maps[:, channel].flatten().tolist() if x < 0] for channel in range(3)]
        expected = [sum(each) / len(each) if each else 0 for each in negative]
        tokens = maps.flatten(2).transpose(1, 2)
        assert batch_margins(maps).tolist() == pytest.approx(expected, rel=1e-12)
        assert batch_margins(tokens).tolist() == pytest.approx(expected, rel=1e-12)

    def test_raise_what_is_below_them(self) -> None:
        margins = torch.tensor([-1.0, 0.0])
        maps = torch.tensor([[-2.0, -2.0], [-0.5, -0.5], [3.0, 3.0]])
        wanted = [[-1.0, 0.0], [-0.5, 0.0], [3.0, 3.0]]
        assert margin_relu(maps, margins).tolist() == wanted
        assert margin_relu(maps[:, :, None, None], margins).flatten(1).tolist() == wanted
        assert margin_relu(maps[None], margins).squeeze(0).tolist() == wanted

    def test_come_from_the_batch_norm_before_the_activation(self, new_context: NewContext) -> None:
        teacher = Plain(6)
        norms = [teacher.stage1.norm, teacher.stage2.norm, teacher.stage3.norm]
        for norm in norms:
            nn.init.normal_(norm.weight, std=2)
            nn.init.normal_(norm.bias)
        term = FeatureOverhaul().term(pair_of(Plain(relu="inplace"), teacher, new_context(), "ofd"))
        margins = dict(term.named_buffers())
        for layer, norm in enumerate(norms):
            expected = negative_means(norm.bias.detach(), norm.weight.detach().abs())
            torch.testing.assert_close(margins[f"margin{layer}"], expected)
        assert set(margins) - {f"margin{layer}" for layer in range(3)} == {
            f"projectors.{layer}.1.{name}"
            for layer in range(3)
            for name in ("running_mean", "running_var", "num_batches_tracked")
        }

    def test_come_from_the_batch_where_a_sum_goes_into_the_activation(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        term = FeatureOverhaul().term(pair_of(Plain(), new_artifact(width=16).model, new_context(), "ofd"))
        assert not any("margin" in name for name, _ in term.named_buffers())
        mine: dict[str, Tensor] = {
            match.student: draws(*match.student_shape, dtype=torch.float32) for match in term.matches
        }
        theirs = {match.teacher: draws(*match.teacher_shape, dtype=torch.float32) for match in term.matches}
        loss = term(observation(student_maps=mine, teacher_maps=theirs))
        assert isinstance(loss, Tensor)
        loss.mean().backward()
        assert all(each.grad is not None and each.grad.any() for each in term.parameters() if each.ndim == 4)

    def test_follow_a_batch_norm_without_weights(self, new_context: NewContext) -> None:
        teacher = Plain(6)
        teacher.stage3.norm = nn.BatchNorm2d(24, affine=False)
        term = FeatureOverhaul(layers="stage3.relu:input").term(pair_of(Plain(), teacher, new_context(), "ofd"))
        assert dict(term.named_buffers())["margin0"].tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 24)


def test_is_refused_where_no_module_shows_what_goes_into_the_activations(new_context: NewContext) -> None:
    context = new_context()
    with pytest.raises(StageError, match=r"`ofd`: the student gives no values below zero.*can serve.*`at`"):
        FeatureOverhaul().term(pair_of(Plain(relu="function"), Plain(), context, "ofd"))
    with pytest.raises(StageError, match=r"`ofd`: .*finds 0 corresponding layers with maps.*name the layers"):
        FeatureOverhaul().term(pair_of(Encoder(), Encoder(), context, "ofd"))
