"""Facts about losses that compare how samples, or channels, relate to each other."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from observations import HARD_CASES, draws, finite_gradients
from torch import Tensor

from potstill.stages.knowledge.relation.cc import kernel
from potstill.stages.knowledge.relation.ickd import unlike_channels
from potstill.stages.knowledge.relation.pkt import unlike_neighbours
from potstill.stages.knowledge.relation.rkd import unlike_angles, unlike_distances
from potstill.stages.knowledge.relation.sp import unlike_similarities

Rows = list[list[float]]
Loss = Callable[[Tensor, Tensor], Tensor]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a: list[float]) -> float:
    return math.sqrt(dot(a, a))


def minus(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def sp_by_loops(student: Rows, teacher: Rows) -> float:
    def rows(features: Rows) -> Rows:
        gram = [[dot(a, b) for b in features] for a in features]
        return [[value / length(row) for value in row] for row in gram]

    mine, theirs = rows(student), rows(teacher)
    count = len(student)
    return sum((mine[i][j] - theirs[i][j]) ** 2 for i in range(count) for j in range(count)) / count**2


def pkt_by_loops(student: Rows, teacher: Rows) -> float:
    def probability(features: Rows, i: int, j: int) -> float:
        def likeness(a: int, b: int) -> float:
            return (dot(features[a], features[b]) / length(features[a]) / length(features[b]) + 1) / 2

        return likeness(i, j) / sum(likeness(k, j) for k in range(len(features)) if k != j)

    count, total = len(student), 0.0
    for j in range(count):
        for i in range(count):
            if i != j:
                p, q = probability(teacher, i, j), probability(student, i, j)
                total += p * math.log(p / q)
    return total / count


def distances_by_loops(student: Rows, teacher: Rows) -> float:
    def relative(features: Rows) -> Rows:
        plain = [[length(minus(a, b)) for b in features] for a in features]
        different = [value for row in plain for value in row if value > 0]
        return [[value * len(different) / sum(different) for value in row] for row in plain]

    mine, theirs, count = relative(student), relative(teacher), len(student)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    return sum(huber(mine[i][j] - theirs[i][j]) for i, j in pairs) / len(pairs)


def angles_by_loops(student: Rows, teacher: Rows) -> float:
    def cosine(features: Rows, i: int, j: int, k: int) -> float:
        one, other = minus(features[i], features[j]), minus(features[k], features[j])
        return dot(one, other) / length(one) / length(other)

    count = range(len(student))
    triples = [(i, j, k) for i in count for j in count for k in count if len({i, j, k}) == 3]
    return sum(huber(cosine(student, *each) - cosine(teacher, *each)) for each in triples) / len(triples)


def cc_by_loops(student: Rows, teacher: Rows, gamma: float, order: int) -> float:
    def entry(features: Rows, i: int, j: int) -> float:
        cosine = dot(features[i], features[j]) / length(features[i]) / length(features[j])
        powers = ((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
        return math.exp(-2 * gamma) * sum(powers)

    count = range(len(student))
    return sum((entry(student, i, j) - entry(teacher, i, j)) ** 2 for i in count for j in count) / len(student) ** 2


def ickd_by_loops(student: Rows, teacher: Rows) -> float:
    """Of one sample; a row of positions for each channel."""

    def rows(maps: Rows) -> Rows:
        gram = [[dot(a, b) for b in maps] for a in maps]
        return [[value / length(row) for value in row] for row in gram]

    mine, theirs = rows(student), rows(teacher)
    channels = range(len(student))
    return sum((mine[a][b] - theirs[a][b]) ** 2 for a in channels for b in channels)


def cc(student: Tensor, teacher: Tensor) -> Tensor:
    return (kernel(student, 0.4, 2) - kernel(teacher, 0.4, 2)).square().mean()


SCALARS: dict[str, tuple[Loss, Callable[[Rows, Rows], float]]] = {
    "sp": (unlike_similarities, sp_by_loops),
    "pkt": (unlike_neighbours, pkt_by_loops),
    "rkd distances": (unlike_distances, distances_by_loops),
    "rkd angles": (unlike_angles, angles_by_loops),
    "cc": (cc, lambda student, teacher: cc_by_loops(student, teacher, 0.4, 2)),
}
LOSSES = {name: loss for name, (loss, _) in SCALARS.items()}


@pytest.mark.parametrize(("loss", "by_loops"), SCALARS.values(), ids=SCALARS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_its_formula_by_loops(loss: Loss, by_loops: Callable[[Rows, Rows], float], seed: int) -> None:
    student, teacher = draws(6, 5, seed=seed), draws(6, 3, seed=seed + 10)
    expected = by_loops(student.tolist(), teacher.tolist())
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
class TestEvery:
    def test_is_zero_for_a_student_that_equals_the_teacher(self, loss: Loss) -> None:
        features = draws(8, 5)
        assert float(loss(features, features)) == pytest.approx(0, abs=1e-12)

    def test_takes_no_notice_of_a_rotation_of_the_features(self, loss: Loss) -> None:
        student, teacher = draws(8, 5), draws(8, 5, seed=1)
        turn = torch.linalg.qr(draws(5, 5, seed=2)).Q
        assert float(loss(student @ turn, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-9)

    def test_takes_no_notice_of_a_global_scale(self, loss: Loss) -> None:
        student, teacher = draws(8, 5), draws(8, 5, seed=1)
        assert float(loss(7 * student, 0.1 * teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-6)

    def test_takes_no_notice_of_the_samples_order(self, loss: Loss) -> None:
        student, teacher = draws(8, 5), draws(8, 4, seed=1)
        order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
        assert float(loss(student[order], teacher[order])) == pytest.approx(float(loss(student, teacher)), rel=1e-9)

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_has_finite_gradients(self, loss: Loss, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](6, 5)
        teacher = draws(len(student), 4, seed=1, dtype=torch.float32)
        assert finite_gradients(lambda mine: loss(mine, teacher), student, dtype)
        assert finite_gradients(lambda mine: loss(mine, torch.zeros_like(teacher)), student, dtype)

    def test_falls_along_its_gradient(self, loss: Loss) -> None:
        teacher = draws(8, 4, seed=1)
        student = draws(8, 5).requires_grad_()
        value = loss(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert float(loss(student.detach() - 1e-3 * gradient, teacher)) < float(value.detach())


class TestRelationalDistances:
    def test_take_no_notice_of_a_shift(self) -> None:
        student, teacher = draws(8, 5), draws(8, 5, seed=1)
        for loss in (unlike_distances, unlike_angles):
            assert float(loss(student + 3, teacher - 2)) == pytest.approx(float(loss(student, teacher)), rel=1e-6)

    def test_of_corners_taken_in_parts_are_those_of_all_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        student, teacher = draws(9, 5).requires_grad_(), draws(9, 5, seed=1)
        whole = unlike_angles(student, teacher)
        (expected,) = torch.autograd.grad(whole, student)
        monkeypatch.setattr("potstill.stages.knowledge.relation.rkd.AT_ONCE", 2 * 81)
        parts = unlike_angles(student, teacher)
        (gradient,) = torch.autograd.grad(parts, student)
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(gradient, expected)

    def test_of_two_samples_have_no_angles(self) -> None:
        assert float(unlike_angles(draws(2, 5), draws(2, 5, seed=1))) == 0
        assert float(unlike_distances(draws(1, 5), draws(1, 5, seed=1))) == 0


class TestChannels:
    @pytest.mark.parametrize("seed", range(3))
    def test_equal_the_formula_by_loops(self, seed: int) -> None:
        student, teacher = draws(2, 6, 4, seed=seed), draws(2, 9, 4, seed=seed + 5)
        found = unlike_channels(student, teacher).tolist()
        for sample in range(2):
            expected = ickd_by_loops(student[sample].T.tolist(), teacher[sample].T.tolist())
            assert found[sample] == pytest.approx(expected, rel=1e-9)

    def test_are_zero_for_equal_maps_and_take_no_notice_of_their_order(self) -> None:
        tokens = draws(3, 6, 4)
        shuffled = tokens[:, torch.tensor([5, 0, 3, 1, 2, 4])]
        assert float(unlike_channels(shuffled, tokens).sum()) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_have_finite_gradients(self, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](4, 6, 3)
        teacher = draws(len(student), 6, 3, seed=1, dtype=torch.float32)
        assert finite_gradients(partial(unlike_channels, teacher=teacher), student, dtype)
