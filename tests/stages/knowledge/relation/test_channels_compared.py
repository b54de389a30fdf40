"""Facts about methods that compare the channels of maps with each other: fsp, ickd and kdsvd."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.method import LayerMethod
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.relation.fsp import Flow, flow, flow_distance
from potstill.stages.knowledge.relation.ickd import InterChannelCorrelations, channel_distance
from potstill.stages.knowledge.relation.kdsvd import (
    SingularVectors,
    affinities,
    aligned_vectors,
    singular_vectors,
)

NewPair = Callable[..., Pair]
Maps = tuple[Tensor, ...]


def flow_by_loops(first: Tensor, second: Tensor) -> list[list[float]]:
    """Of one sample's maps (C, H, W) of one size."""
    _, height, width = first.shape
    return [
        [
            sum(float(mine[y, x]) * float(theirs[y, x]) for y in range(height) for x in range(width)) / (height * width)
            for theirs in second
        ]
        for mine in first
    ]


def ickd_by_loops(student: Tensor, teacher: Tensor) -> float:
    """Of one sample's maps (C, H, W)."""

    def matrix(maps: Tensor) -> list[list[float]]:
        rows = maps.flatten(1).tolist()
        products = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
        return [[value / math.sqrt(sum(each * each for each in row)) for value in row] for row in products]

    mine, theirs = matrix(student), matrix(teacher)
    channels = range(len(mine))
    return sum((mine[i][j] - theirs[i][j]) ** 2 for i in channels for j in channels) / len(mine)


def kdsvd_by_loops(student: list[Tensor], teacher: list[Tensor], count: int) -> float:
    """Of one sample's maps (C, H, W) at two layers or more."""
    layers: list[tuple[list[list[float]], list[list[float]]]] = []
    for mine, theirs in zip(student, teacher, strict=True):
        # Rows of the third factor are the directions in the channels.
        candidates = np.linalg.svd(mine.flatten(1).T.numpy())[2][: count + 3]
        _, values, wanted = np.linalg.svd(theirs.flatten(1).T.numpy())
        strengths = [value / math.sqrt(sum(each**2 for each in values[:count])) for value in values[:count]]
        turned: list[list[float]] = []
        targets: list[list[float]] = []
        for strength, target in zip(strengths, wanted[:count], strict=True):
            target = target if target.sum() >= 0 else -target
            best = max(candidates, key=lambda each: abs(each @ target))
            turned.append([float(strength * np.sign(best @ target) * value) for value in best])
            targets.append([float(strength * value) for value in target])
        layers.append((turned, targets))
    total = 0.0
    for (mine, theirs), (mine_next, theirs_next) in pairwise(layers):
        for vector in range(count):
            for i in range(len(mine[vector])):
                for j in range(len(mine_next[vector])):
                    found = math.exp(-((mine[vector][i] - mine_next[vector][j]) ** 2) / 8)
                    wanted = math.exp(-((theirs[vector][i] - theirs_next[vector][j]) ** 2) / 8)
                    total += (found - wanted) ** 2
    return total / (len(layers) - 1)


def kdsvd(student: Maps, teacher: Maps, count: int = 2) -> Tensor:
    """The loss (B,) of maps at two layers, put together as the term does."""
    (mine, theirs), (mine_next, theirs_next) = (
        aligned_vectors(*maps, count) for maps in zip(student, teacher, strict=True)
    )
    return (affinities(mine, mine_next) - affinities(theirs, theirs_next)).square().sum((1, 2, 3))


def stages(seed: int, count: int = 3) -> Maps:
    """Maps at two layers, the second of more channels and half the size; positive on the whole, as after a ReLU."""
    return draws(count, 4, 6, 6, seed=seed) + 0.3, draws(count, 6, 3, 3, seed=seed + 1) + 0.3


class TestFlow:
    @given(seed=st.integers(0, 1000))
    @settings(max_examples=10, deadline=None)
    def test_equals_a_reading_number_by_number(self, seed: int) -> None:
        first, second = draws(2, 3, 4, 2, seed=seed), draws(2, 5, 4, 2, seed=seed + 1)
        expected = [flow_by_loops(*maps) for maps in zip(first, second, strict=True)]
        torch.testing.assert_close(flow(first, second), torch.tensor(expected).double())

    def test_larger_maps_are_averaged_to_the_size_of_smaller_ones(self) -> None:
        first, second = stages(0)
        pooled = torch.stack([first[..., y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2, 4) for x in (0, 2, 4)], 2)
        torch.testing.assert_close(flow(first, second), flow(pooled.view(3, 4, 3, 3), second))
        torch.testing.assert_close(flow(second, first), flow(first, second).transpose(1, 2))

    def test_the_distance_is_the_mean_of_squares(self) -> None:
        student, teacher = stages(0), stages(2)
        sized = [(functional.adaptive_avg_pool2d(first, 3), second) for first, second in (student, teacher)]
        for sample, found in enumerate(flow_distance(student, teacher)):
            mine, theirs = (flow_by_loops(first[sample], second[sample]) for first, second in sized)
            gaps = [(mine[i][j] - theirs[i][j]) ** 2 for i in range(4) for j in range(6)]
            assert float(found) == pytest.approx(sum(gaps) / len(gaps), rel=1e-9)


class TestChannelDistance:
    @pytest.mark.parametrize("size", [(4, 5), (2, 1)], ids=["more positions", "more channels"])
    def test_equals_a_reading_number_by_number(self, size: tuple[int, int]) -> None:
        student, teacher = draws(3, 4, *size), draws(3, 4, *size, seed=1)
        expected = [ickd_by_loops(*maps) for maps in zip(student, teacher, strict=True)]
        assert channel_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-9)

    def test_maps_may_differ_in_size(self) -> None:
        student, teacher = draws(2, 4, 3, 3), draws(2, 4, 1, 2, seed=1)
        expected = [ickd_by_loops(*maps) for maps in zip(student, teacher, strict=True)]
        assert channel_distance(student, teacher).tolist() == pytest.approx(expected, rel=1e-9)

    def test_takes_no_notice_of_places_and_of_scale(self) -> None:
        maps = draws(3, 4, 5, 5)
        shuffled = maps.flatten(2)[:, :, torch.randperm(25, generator=torch.Generator().manual_seed(0))].view_as(maps)
        torch.testing.assert_close(channel_distance(7 * shuffled, maps), torch.zeros(3).double(), rtol=0, atol=1e-12)

    def test_channels_that_are_dead_in_both_networks_cost_nothing(self) -> None:
        maps = draws(3, 4, 5, 5)
        maps[:, 1] = 0
        torch.testing.assert_close(channel_distance(maps, maps), torch.zeros(3).double(), rtol=0, atol=1e-12)
        student = draws(3, 4, 5, 5, seed=1)
        alive = [0, 2, 3]
        student[:, 1] = 0
        without = 3 / 4 * channel_distance(student[:, alive], maps[:, alive])
        torch.testing.assert_close(channel_distance(student, maps), without)


class TestSingularVectors:
    @pytest.mark.parametrize("size", [(4, 5), (2, 2)], ids=["more positions", "more channels"])
    def test_are_those_of_the_decomposition(self, size: tuple[int, int]) -> None:
        maps = draws(3, 6, *size)
        values, vectors = singular_vectors(maps, 3)
        for sample in range(3):
            matrix = maps[sample].flatten(1).T.numpy()
            _, expected, directions = np.linalg.svd(matrix)
            scale = np.linalg.norm(matrix)
            assert values[sample].tolist() == pytest.approx((expected[:3] / scale).tolist())
            for found, direction in zip(vectors[sample].T, directions, strict=False):
                sign = 1 if direction.sum() >= 0 else -1
                assert found.tolist() == pytest.approx((sign * direction).tolist())

    @pytest.mark.parametrize("count", [1, 2])
    def test_the_loss_equals_a_reading_number_by_number(self, count: int) -> None:
        student, teacher = stages(3), stages(5)
        expected = [
            kdsvd_by_loops([maps[sample] for maps in student], [maps[sample] for maps in teacher], count)
            for sample in range(3)
        ]
        assert kdsvd(student, teacher, count).tolist() == pytest.approx(expected, rel=1e-9)

    def test_one_of_the_spare_vectors_is_taken_where_it_fits_better(self) -> None:
        """The student's strongest direction is the teacher's second one, and turned around."""
        directions, places = torch.linalg.qr(draws(4, 2)).Q, torch.linalg.qr(draws(9, 2, seed=1)).Q
        teacher = (directions * torch.tensor([2.0, 1.0])) @ places.T
        student = (directions * torch.tensor([-1.0, 2.0])) @ places.T
        mine, theirs = aligned_vectors(student.view(1, 4, 3, 3), teacher.view(1, 4, 3, 3), 1)
        torch.testing.assert_close(mine, theirs)

    @pytest.mark.parametrize("size", [(3, 3), (2, 1)], ids=["more positions", "more channels"])
    def test_gradients_are_slopes_where_singular_values_are_apart(self, size: tuple[int, int]) -> None:
        """Central differences, in float64; the cut changes gradients by about the square of its share of the gaps."""
        channels, places = 4, size[0] * size[1]
        rank = min(channels, places)
        left, right = torch.linalg.qr(draws(channels, channels)).Q, torch.linalg.qr(draws(places, places, seed=1)).Q
        strengths = torch.tensor([4.0, 2.0, 1.0, 0.4]).double()[:rank]
        maps = ((left[:, :rank] * strengths) @ right[:, :rank].T).view(1, channels, *size).requires_grad_()
        weights = draws(1, channels, 2, seed=2)

        def height(at: Tensor) -> Tensor:
            return (singular_vectors(at, 2)[1] * weights).sum()

        (gradient,) = torch.autograd.grad(height(maps), maps)
        for position in range(channels * places):
            step = 1e-5 * functional.one_hot(torch.tensor(position), channels * places).view_as(maps)
            slope = float((height(maps + step) - height(maps - step)).detach()) / 2e-5
            assert float(gradient.flatten()[position]) == pytest.approx(slope, rel=1e-3, abs=1e-4)

    def test_gradients_stay_small_where_singular_values_are_equal(self) -> None:
        """Vectors of equal values turn freely: torch's own decomposition has a gradient without bounds there."""
        equal = torch.eye(4).view(1, 4, 2, 2) + 1e-7 * draws(1, 4, 2, 2, dtype=torch.float32)
        leaf = equal.requires_grad_()
        (gradient,) = torch.autograd.grad(singular_vectors(leaf, 2)[1].sum(), leaf)
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) < 1e4


def ickd(student: Maps, teacher: Maps) -> Tensor:
    """The loss (B,) of the second layer."""
    return channel_distance(student[1], teacher[1])


LOSSES: dict[str, Callable[[Maps, Maps], Tensor]] = {
    "fsp": flow_distance,
    "ickd": ickd,
    "kdsvd": kdsvd,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
class TestEveryLoss:
    def test_is_zero_for_the_teacher_s_own_maps(self, loss: Callable[[Maps, Maps], Tensor]) -> None:
        found = loss(stages(1), stages(1))
        torch.testing.assert_close(found, torch.zeros(3).double(), rtol=0, atol=1e-12)
        assert bool((loss(stages(1), stages(3)) > 1e-6).all())

    def test_is_each_sample_s_own(self, loss: Callable[[Maps, Maps], Tensor]) -> None:
        student, teacher = stages(1, count=4), stages(3, count=4)
        whole = loss(student, teacher)
        for sample in range(4):
            alone = slice(sample, sample + 1)
            single = loss(tuple(maps[alone] for maps in student), tuple(maps[alone] for maps in teacher))
            torch.testing.assert_close(single, whole[alone])

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_bears_hard_cases(self, loss: Callable[[Maps, Maps], Tensor], case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](6, 4, 6, 6)
        teacher = tuple(maps.float() for maps in stages(3, count=len(student)))
        zeros = tuple(torch.zeros_like(maps) for maps in teacher)

        def next_to(mine: Tensor) -> Maps:
            return mine, functional.avg_pool2d(mine, 2).repeat(1, 2, 1, 1)[:, :6]

        assert finite_gradients(lambda mine: loss(next_to(mine), teacher), student, dtype)
        assert finite_gradients(lambda mine: loss(next_to(mine), zeros), student, dtype)


METHODS: dict[str, LayerMethod] = {"fsp": Flow(), "ickd": InterChannelCorrelations(), "kdsvd": SingularVectors()}


@pytest.mark.parametrize("name", METHODS)
class TestTerms:
    def test_other_widths_are_bridged_and_the_bridges_trained(self, name: str, new_pair: NewPair) -> None:
        term = METHODS[name].term(new_pair())
        mine = {m.student: draws(5, *m.student_shape[1:], dtype=torch.float32) for m in term.matches}
        theirs = {m.teacher: draws(5, *m.teacher_shape[1:], seed=1, dtype=torch.float32) for m in term.matches}
        loss = term(observation(student_maps=mine, teacher_maps=theirs))
        assert isinstance(loss, Tensor)
        assert loss.shape == (5,)
        loss.mean().backward()
        assert len(list(term.parameters())) == 9
        assert all(each.grad is not None and bool(torch.isfinite(each.grad).all()) for each in term.parameters())

    def test_equal_widths_are_compared_as_they_are(self, name: str, new_pair: NewPair) -> None:
        pair = new_pair()
        like = new_pair(pair.teacher.model, pair.teacher.model)
        term = METHODS[name].term(like)
        maps = {m.student: draws(5, *m.student_shape[1:], dtype=torch.float32) for m in term.matches}
        loss = term(observation(student_maps=maps, teacher_maps=maps))
        assert isinstance(loss, Tensor)
        assert not list(term.parameters())
        torch.testing.assert_close(loss, torch.zeros(5), rtol=0, atol=1e-5)

    def test_vectors_are_refused(self, name: str, new_pair: NewPair, without_maps: nn.Module) -> None:
        with pytest.raises(StageError, match=r"maps or square grids of tokens.*Methods that can serve.*`dkd`"):
            METHODS[name].term(new_pair(without_maps))


def test_tokens_in_a_square_are_maps(new_pair: NewPair) -> None:
    class Patches(nn.Module):
        """Patches of 4×4 pixels and a class token."""

        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 12))
            self.head = nn.Linear(12, 4)

        def forward(self, image: Tensor) -> Tensor:
            patches = functional.unfold(image, 4, stride=4).transpose(1, 2)
            return self.head(self.blocks(torch.cat([patches.mean(1, keepdim=True), patches], 1)).mean(1))

    pair = new_pair(Patches())
    layers = [{"student": f"blocks.{each}", "teacher": f"layer{each + 1}"} for each in range(3)]
    for method in (Flow, InterChannelCorrelations, SingularVectors):
        term = method.model_validate({"layers": layers}).term(pair)
        mine = {m.student: draws(3, *m.student_shape[1:], dtype=torch.float32) for m in term.matches}
        theirs = {m.teacher: draws(3, *m.teacher_shape[1:], dtype=torch.float32) for m in term.matches}
        loss = term(observation(student_maps=mine, teacher_maps=theirs))
        assert isinstance(loss, Tensor)
        assert bool((loss > 0).all())


def test_a_flow_needs_two_layers(new_pair: NewPair) -> None:
    for method in (Flow, SingularVectors):
        with pytest.raises(StageError, match=r"finds 1 corresponding layers.*needs 2 or more"):
            method.model_validate({"layers": "layer1"}).term(new_pair())
