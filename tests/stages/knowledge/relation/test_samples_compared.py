"""Facts about methods that compare the samples of a batch with each other: sp, pkt, cc and rkd."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.relation.cc import Congruence, correlations, incongruence
from potstill.stages.knowledge.relation.pkt import Neighbourhoods, neighbourhood_divergence, neighbours
from potstill.stages.knowledge.relation.rkd import Relations, angle_loss, distance_loss, distances, relational_loss
from potstill.stages.knowledge.relation.sp import Similarities, similarity_distance

Loss = Callable[[Tensor, Tensor], Tensor]
Rows = list[list[float]]
NewPair = Callable[..., Pair]

LOSSES: dict[str, Loss] = {
    "sp": similarity_distance,
    "pkt": neighbourhood_divergence,
    "cc": partial(incongruence, gamma=0.4, order=2),
    "rkd": partial(relational_loss, distance=25, angle=50),
}
WIDTHS = {"student": 5, "teacher": 9}


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def length(row: list[float]) -> float:
    return math.sqrt(dot(row, row))


def cosine(first: list[float], second: list[float]) -> float:
    return dot(first, second) / length(first) / length(second)


def minus(first: list[float], second: list[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def huber(mine: float, theirs: float) -> float:
    gap = abs(mine - theirs)
    return gap * gap / 2 if gap <= 1 else gap - 0.5


def sp_by_loops(student: Rows, teacher: Rows) -> float:
    def matrix(rows: Rows) -> Rows:
        products = [[dot(a, b) for b in rows] for a in rows]
        return [[value / length(row) for value in row] for row in products]

    mine, theirs = matrix(student), matrix(teacher)
    count = range(len(student))
    return sum((mine[i][j] - theirs[i][j]) ** 2 for i in count for j in count) / len(student) ** 2


def pkt_by_loops(student: Rows, teacher: Rows) -> float:
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        mine = {j: (cosine(student[i], student[j]) + 1) / 2 for j in others}
        theirs = {j: (cosine(teacher[i], teacher[j]) + 1) / 2 for j in others}
        for j in others:
            p, q = theirs[j] / sum(theirs.values()), mine[j] / sum(mine.values())
            total += p * math.log(p / q)
    return total / len(student)


def cc_by_loops(student: Rows, teacher: Rows, gamma: float, order: int) -> float:
    def entry(rows: Rows, i: int, j: int) -> float:
        x = cosine(rows[i], rows[j])
        series = sum((2 * gamma) ** p / math.factorial(p) * x**p for p in range(order + 1))
        return math.exp(-2 * gamma) * series

    count = range(len(student))
    return sum((entry(student, i, j) - entry(teacher, i, j)) ** 2 for i in count for j in count) / len(student) ** 2


def rkd_distance_by_loops(student: Rows, teacher: Rows) -> float:
    pairs = [(i, j) for i in range(len(student)) for j in range(len(student)) if i != j]

    def of(rows: Rows) -> list[float]:
        found = [length(minus(rows[i], rows[j])) for i, j in pairs]
        return [value / (sum(found) / len(found)) for value in found]

    return sum(huber(a, b) for a, b in zip(of(student), of(teacher), strict=True)) / len(pairs)


def rkd_angle_by_loops(student: Rows, teacher: Rows) -> float:
    count = range(len(student))
    triples = [(i, j, k) for i in count for j in count for k in count if len({i, j, k}) == 3]

    def of(rows: Rows) -> list[float]:
        return [cosine(minus(rows[i], rows[j]), minus(rows[k], rows[j])) for i, j, k in triples]

    return sum(huber(a, b) for a, b in zip(of(student), of(teacher), strict=True)) / len(triples)


def both(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Features of a student and a teacher of other width."""
    return draws(count, WIDTHS["student"], seed=2 * seed), draws(count, WIDTHS["teacher"], seed=2 * seed + 1)


class TestFormulas:
    @given(seed=st.integers(0, 1000), count=st.integers(3, 7))
    @settings(max_examples=15, deadline=None)
    def test_equal_a_reading_sample_by_sample(self, seed: int, count: int) -> None:
        student, teacher = both(seed, count)
        rows = (student.tolist(), teacher.tolist())
        assert float(similarity_distance(student, teacher)) == pytest.approx(sp_by_loops(*rows), rel=1e-9)
        # The constant that keeps logarithms finite changes probabilities by 1e-7.
        assert float(neighbourhood_divergence(student, teacher)) == pytest.approx(pkt_by_loops(*rows), rel=1e-3)
        assert float(distance_loss(student, teacher)) == pytest.approx(rkd_distance_by_loops(*rows), rel=1e-9)
        assert float(angle_loss(student, teacher)) == pytest.approx(rkd_angle_by_loops(*rows), rel=1e-9)
        for gamma, order in ((0.4, 2), (1.3, 1), (0.1, 5)):
            found = float(incongruence(student, teacher, gamma=gamma, order=order))
            assert found == pytest.approx(cc_by_loops(*rows, gamma, order), rel=1e-9)

    def test_maps_are_compared_as_long_vectors(self) -> None:
        student, teacher = draws(4, 3, 2, 2), draws(4, 5, 6, seed=1)
        expected = sp_by_loops(student.reshape(4, -1).tolist(), teacher.reshape(4, -1).tolist())
        assert float(similarity_distance(student, teacher)) == pytest.approx(expected, rel=1e-9)

    def test_the_series_comes_near_the_kernel_it_is_of(self) -> None:
        features = torch.nn.functional.normalize(draws(5, 3), dim=1)
        kernel = torch.exp(-0.7 * torch.cdist(features, features).square())
        torch.testing.assert_close(correlations(features, 0.7, 14), kernel, rtol=1e-9, atol=1e-9)

    def test_no_sample_is_its_own_neighbour(self) -> None:
        found = neighbours(draws(5, 3))
        torch.testing.assert_close(found.sum(1), torch.ones(5).double())
        assert not bool(found.diagonal().any())

    def test_of_two_samples_there_is_no_angle(self) -> None:
        assert float(angle_loss(*both(0, count=2))) == 0

    def test_far_distances_count_linearly(self) -> None:
        """One sample far from three at nearly one place, against four evenly apart."""
        student = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [0.0, 1e-3], [100.0, 0.0]]).double()
        teacher = torch.eye(4).double()
        expected = rkd_distance_by_loops(student.tolist(), teacher.tolist())
        assert float(distance_loss(student, teacher)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
class TestEveryLoss:
    def test_is_zero_where_the_samples_relate_as_the_teacher_s_do(self, loss: Loss) -> None:
        """Turned and scaled, in a space of more dimensions."""
        teacher, student = draws(6, 4), draws(6, 4, seed=1)
        turned = torch.linalg.qr(draws(7, 4, seed=2)).Q
        assert float(loss(3 * teacher @ turned.T, teacher)) == pytest.approx(0, abs=1e-12)
        assert float(loss(student, teacher)) > 1e-5

    def test_takes_no_notice_of_the_scale_of_either(self, loss: Loss) -> None:
        student, teacher = both(3)
        for factors in ((7.0, 1.0), (1.0, 0.02), (1e-3, 1e3)):
            scaled = loss(factors[0] * student, factors[1] * teacher)
            assert float(scaled) == pytest.approx(float(loss(student, teacher)), rel=1e-9)

    def test_takes_no_notice_of_the_order_of_samples(self, loss: Loss) -> None:
        (student, teacher), order = both(4), torch.tensor([3, 1, 5, 0, 4, 2])
        assert float(loss(student[order], teacher[order])) == pytest.approx(float(loss(student, teacher)), rel=1e-9)

    def test_does_not_grow_with_the_batch(self, loss: Loss) -> None:
        """Of many samples, to within chance what it is of fewer."""
        few, many = (float(loss(draws(count, 5), draws(count, 9, seed=1))) for count in (24, 96))
        assert many == pytest.approx(few, rel=0.75)

    def test_its_gradient_is_its_slope(self, loss: Loss) -> None:
        student, teacher = both(5)
        assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher))

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_bears_hard_cases(self, loss: Loss, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](8, WIDTHS["student"])
        teacher = draws(len(student), WIDTHS["teacher"], dtype=torch.float32)
        assert finite_gradients(lambda mine: loss(mine, teacher), student, dtype)
        flat = torch.zeros(len(student), WIDTHS["teacher"])
        assert finite_gradients(lambda mine: loss(mine, flat), student, dtype)


class TestSamplesAtOnePlace:
    def test_pull_no_harder_than_others(self) -> None:
        """A direction between two equal samples would be 0 / 0, and its slope without bounds."""
        student, teacher = draws(6, 5, dtype=torch.float32), draws(6, 9, seed=1, dtype=torch.float32)
        student[1] = student[0]
        leaf = student.requires_grad_()
        (gradient,) = torch.autograd.grad(relational_loss(leaf, teacher, distance=25, angle=50), leaf)
        usual = gradient[2:].norm(dim=1).max()
        assert bool((gradient[:2].norm(dim=1) < 10 * usual).all())

    def test_do_not_lower_the_mean_distance_of_the_others(self) -> None:
        places = draws(3, 5)
        doubled = distances(places.repeat(2, 1))
        apart = torch.tensor(sum(length(minus(a, b)) for a in places.tolist() for b in places.tolist()) / 6)
        assert float(doubled[doubled > 0].mean()) == pytest.approx(float(apart), rel=1e-6)


class TestMemory:
    def test_blocks_of_any_size_give_the_same(self) -> None:
        student, teacher = both(6, count=7)
        leaf = student.requires_grad_()
        for loss in (distance_loss, angle_loss):
            values = [loss(leaf, teacher, block=block) for block in (1, 100, 2**22)]
            gradients = [torch.autograd.grad(value, leaf)[0] for value in values]
            for value, gradient in zip(values[1:], gradients[1:], strict=True):
                torch.testing.assert_close(value, values[0])
                torch.testing.assert_close(gradient, gradients[0])

    def test_no_angles_are_held_for_the_backward_pass(self) -> None:
        held: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            held.append(tensor.numel())
            return tensor

        count = 24
        leaf, teacher = draws(count, 5).requires_grad_(), draws(count, 9, seed=1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = relational_loss(leaf, teacher, distance=25, angle=50)
        assert sum(held) < count**3
        assert bool(torch.autograd.grad(loss, leaf)[0].any())


METHODS: dict[str, Method] = {
    "sp": Similarities(),
    "pkt": Neighbourhoods(),
    "cc": Congruence(),
    "rkd": Relations(),
}


def seen_at(method: Method, pair: Pair, **sizes: Any) -> tuple[Any, Any]:
    """A term, and an observation of noise where it reads."""
    term = method.term(pair)
    mine = {match.student: draws(6, *match.student_shape[1:], dtype=torch.float32) for match in term.matches}
    theirs = {match.teacher: draws(6, *match.teacher_shape[1:], seed=1, dtype=torch.float32) for match in term.matches}
    return term, observation(student_maps=mine, teacher_maps=theirs)


@pytest.mark.parametrize("name", METHODS)
class TestTerms:
    def test_compare_networks_of_any_width_without_parameters(self, name: str, new_pair: NewPair) -> None:
        term, seen = seen_at(METHODS[name], new_pair())
        assert term(seen).ndim == 0
        assert float(term(seen)) > 0
        assert not list(term.parameters())

    def test_are_the_mean_over_what_is_compared(self, name: str, new_pair: NewPair) -> None:
        term, seen = seen_at(METHODS[name], new_pair())
        each = [LOSSES[name](mine, theirs) for mine, theirs in term.maps(seen)]
        assert float(term(seen)) == pytest.approx(sum(map(float, each)) / len(each), rel=1e-5)
        assert len(each) == (3 if name == "sp" else 1)


@pytest.mark.parametrize("name", ["pkt", "cc", "rkd"])
def test_a_network_without_a_linear_head_is_refused(name: str, new_pair: NewPair, without_maps: nn.Module) -> None:
    with pytest.raises(StageError, match=r"student does not end in a linear layer.*Methods that can serve.*`dkd`"):
        METHODS[name].term(new_pair(without_maps))


def test_layers_that_are_not_there_are_refused(new_pair: NewPair, without_maps: nn.Module) -> None:
    with pytest.raises(StageError, match=r"finds 0 corresponding layers.*Methods that can serve.*`dkd`"):
        Similarities().term(new_pair(without_maps))
    found = Similarities.model_validate({"layers": [{"student": "first", "teacher": "layer3"}]})
    assert len(found.term(new_pair(without_maps)).matches) == 1
