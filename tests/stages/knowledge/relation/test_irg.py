"""Facts about graphs of samples."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.method import Term
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.relation.irg import Graphs, edge_lengths, moved, squared_error

NewPair = Callable[..., Pair]


def squared_gap(first: list[float], second: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True))


def edges_by_loops(layer: Tensor) -> list[list[float]]:
    rows = layer.flatten(1).tolist()
    found = [[squared_gap(a, b) for b in rows] for a in rows]
    return [[value / max(map(max, found)) for value in row] for row in found]


def moved_by_loops(first: Tensor, second: Tensor) -> list[float]:
    """Of maps (B, C, 2H, 2W) and then (B, 2C, H, W): squares of four pixels and pairs of channels are averaged."""
    count, channels, height, width = first.shape[0], first.shape[1], second.shape[2], second.shape[3]
    found: list[float] = []
    for sample in range(count):
        total = 0.0
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    square = [float(first[sample, c, 2 * y + i, 2 * x + j]) for i in (0, 1) for j in (0, 1)]
                    neighbours = [float(second[sample, 2 * c + k, y, x]) for k in (0, 1)]
                    total += (sum(square) / 4 - sum(neighbours) / 2) ** 2
        found.append(total)
    return [value / max(found) for value in found]


class TestFormulas:
    @given(seed=st.integers(0, 1000), count=st.integers(2, 6))
    @settings(max_examples=15, deadline=None)
    def test_edges_equal_a_reading_pair_by_pair(self, seed: int, count: int) -> None:
        layer = draws(count, 3, 2, 2, seed=seed)
        torch.testing.assert_close(edge_lengths(layer), torch.tensor(edges_by_loops(layer)).double())

    @given(seed=st.integers(0, 1000), count=st.integers(1, 4))
    @settings(max_examples=10, deadline=None)
    def test_moves_equal_a_reading_number_by_number(self, seed: int, count: int) -> None:
        first, second = draws(count, 2, 4, 4, seed=seed), draws(count, 4, 2, 2, seed=seed + 1)
        expected = moved_by_loops(first, second)
        assert moved(first, second).tolist() == pytest.approx(expected)
        assert moved(second, first).tolist() == pytest.approx(expected)

    def test_a_common_part_of_all_samples_costs_no_digits(self) -> None:
        layer = draws(6, 4, dtype=torch.float32)
        torch.testing.assert_close(edge_lengths(layer + 1000), edge_lengths(layer), rtol=0, atol=1e-3)


def term_and_maps(pair: Pair, count: int = 5) -> tuple[Term, dict[str, Tensor], dict[str, Tensor]]:
    term = Graphs().term(pair)
    mine = {m.student: draws(count, *m.student_shape[1:], dtype=torch.float32) for m in term.matches}
    theirs = {m.teacher: draws(count, *m.teacher_shape[1:], seed=1, dtype=torch.float32) for m in term.matches}
    return term, mine, theirs


class TestTerm:
    def test_adds_logits_edges_and_moves(self, new_pair: NewPair) -> None:
        term, mine, theirs = term_and_maps(new_pair())
        logits = draws(5, 4, dtype=torch.float32), draws(5, 4, seed=1, dtype=torch.float32)
        found = term(observation(student=logits[0], teacher=logits[1], student_maps=mine, teacher_maps=theirs))
        stages = ["layer1", "layer2", "layer3"]
        edges = [squared_error(edge_lengths(mine[each]), edge_lengths(theirs[each])) for each in mine]
        moves = [squared_error(moved(mine[a], mine[b]), moved(theirs[a], theirs[b])) for a, b in pairwise(stages)]
        assert list(mine) == [*stages, "linear:input"]
        gaps = [squared_gap(*rows) for rows in zip(logits[0].tolist(), logits[1].tolist(), strict=True)]
        expected = 0.1 * sum(gaps) / 20 + 5 * sum(map(float, edges)) / 4 + 5 * sum(map(float, moves)) / 2
        assert float(found) == pytest.approx(expected, rel=1e-5)

    def test_is_zero_where_nothing_but_the_scale_of_layers_differs(self, new_pair: NewPair) -> None:
        teacher = new_pair().teacher.model
        term, mine, _ = term_and_maps(new_pair(teacher, teacher))
        scaled = {tap: 3 * layer for tap, layer in mine.items()}
        logits = draws(5, 4, dtype=torch.float32)
        assert float(
            term(observation(student=logits, teacher=logits, student_maps=scaled, teacher_maps=mine))
        ) == pytest.approx(0, abs=1e-9)

    def test_takes_no_notice_of_the_order_of_samples(self, new_pair: NewPair) -> None:
        term, mine, theirs = term_and_maps(new_pair())
        order = torch.tensor([4, 2, 0, 1, 3])
        turned = [{tap: layer[order] for tap, layer in maps.items()} for maps in (mine, theirs)]
        torch.testing.assert_close(
            term(observation(student_maps=turned[0], teacher_maps=turned[1])),
            term(observation(student_maps=mine, teacher_maps=theirs)),
        )

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_bears_hard_cases(self, case: str, dtype: torch.dtype, new_pair: NewPair) -> None:
        first = HARD_CASES[case](6, 8, 16, 16)
        term, _, theirs = term_and_maps(new_pair(), count=len(first))

        def loss(maps: Tensor) -> object:
            second = torch.nn.functional.avg_pool2d(maps, 2).repeat(1, 2, 1, 1)
            third = torch.nn.functional.avg_pool2d(second, 2).repeat(1, 2, 1, 1)
            mine = {"layer1": maps, "layer2": second, "layer3": third, "linear:input": third.mean((2, 3))}
            return term(observation(student=third.mean((2, 3))[:, :4], student_maps=mine, teacher_maps=theirs))

        assert finite_gradients(loss, first, dtype)

    def test_samples_at_one_place_pull_at_nothing(self, new_pair: NewPair) -> None:
        """Distances over the largest of them would blow rounding up to the size of any other loss."""
        leaf = (draws(1, 64, dtype=torch.float32) + 1e-7 * draws(5, 64, seed=2, dtype=torch.float32)).requires_grad_()
        (gradient,) = torch.autograd.grad(squared_error(edge_lengths(leaf), edge_lengths(draws(5, 9).float())), leaf)
        assert float(gradient.abs().max()) < 1e3


def test_networks_without_maps_or_a_head_are_refused(new_pair: NewPair, without_maps: nn.Module) -> None:
    with pytest.raises(StageError, match=r"maps or square grids of tokens.*Methods that can serve.*`dkd`"):
        Graphs().term(new_pair(without_maps))
    headless = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Softmax(1))
    with pytest.raises(StageError, match="student does not end in a linear layer"):
        Graphs().term(new_pair(headless))
