"""Facts about the methods that compare logits alone: each against its formula, and what all promise."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from by_hand import deviation, kl, mean, pearson, softmax, without
from observations import HARD_CASES, draws, finite_gradients, labels, observation
from torch import Tensor

from potstill.stages.knowledge.method import LogitMethod, Term, standardized
from potstill.stages.knowledge.response.dist import Correlations
from potstill.stages.knowledge.response.dkd import DecoupledTargets, decoupled
from potstill.stages.knowledge.response.kd import SoftTargets, soft_targets
from potstill.stages.knowledge.response.logits import RawLogits
from potstill.stages.knowledge.response.nkd import NormalizedTargets
from potstill.stages.knowledge.response.normkd import NormalizedLogits
from potstill.stages.knowledge.response.rld import RefinedTargets
from potstill.stages.knowledge.response.ttm import TransformedTeacher
from potstill.stages.knowledge.response.wsld import WeightedTargets
from potstill.stages.knowledge.response.wttm import WeightedTransformedTeacher

Row = list[float]


def logits_by_hand(student: Row, teacher: Row, target: int) -> float:
    return mean([(s - t) ** 2 for s, t in zip(student, teacher, strict=True)])


def kd_by_hand(student: Row, teacher: Row, target: int) -> float:
    return 4**2 * kl(softmax(teacher, 4), softmax(student, 4))


def dkd_by_hand(student: Row, teacher: Row, target: int) -> float:
    p_t, p_s = softmax(teacher, 4), softmax(student, 4)
    target_class = kl([p_t[target], 1 - p_t[target]], [p_s[target], 1 - p_s[target]])
    q_t = [p / (1 - p_t[target]) for p in without(p_t, target)]
    q_s = [p / (1 - p_s[target]) for p in without(p_s, target)]
    return 4**2 * (1 * target_class + 8 * kl(q_t, q_s))


def nkd_by_hand(student: Row, teacher: Row, target: int) -> float:
    target_class = -softmax(teacher)[target] * math.log(softmax(student)[target])
    q_t, q_s = softmax(without(teacher, target), 3), softmax(without(student, target), 3)
    return target_class - 3.5 * 3**2 * sum(t * math.log(s) for t, s in zip(q_t, q_s, strict=True))


def wsld_by_hand(student: Row, teacher: Row, target: int) -> float:
    ratio = math.log(softmax(student)[target]) / math.log(softmax(teacher)[target])
    return (1 - math.exp(-ratio)) * kd_by_hand(student, teacher, target)


def normkd_by_hand(student: Row, teacher: Row, target: int) -> float:
    t_s, t_t = 2 * deviation(student), 2 * deviation(teacher)
    return t_t**2 * kl(softmax(teacher, t_t), softmax(student, t_s))


def ttm_by_hand(student: Row, teacher: Row, target: int) -> float:
    powers = [p**0.1 for p in softmax(teacher)]
    return kl([power / sum(powers) for power in powers], softmax(student))


def wttm_by_hand(student: Row, teacher: Row, target: int) -> float:
    return sum(p**0.1 for p in softmax(teacher)) * ttm_by_hand(student, teacher, target)


def rld_by_hand(student: Row, teacher: Row, target: int) -> float:
    best, known = max(softmax(teacher)), softmax(student)[target]
    kept = [c for c, z in enumerate(teacher) if z < teacher[target]]
    below = 0.0
    if kept:
        below = 4**2 * kl(softmax([teacher[c] for c in kept], 4), softmax([student[c] for c in kept], 4))
    return kl([best, 1 - best], [known, 1 - known]) + 8 * below


BY_HAND: dict[LogitMethod, Callable[[Row, Row, int], float]] = {
    RawLogits(): logits_by_hand,
    SoftTargets(): kd_by_hand,
    DecoupledTargets(): dkd_by_hand,
    NormalizedTargets(): nkd_by_hand,
    WeightedTargets(): wsld_by_hand,
    NormalizedLogits(): normkd_by_hand,
    TransformedTeacher(): ttm_by_hand,
    WeightedTransformedTeacher(): wttm_by_hand,
    RefinedTargets(): rld_by_hand,
}
"""The formula of one sample at the method's defaults, for methods of which each sample has its own loss."""

METHODS: tuple[LogitMethod, ...] = (*BY_HAND, Correlations())
LEAST_AT_THE_TEACHER = (RawLogits(), SoftTargets(), DecoupledTargets(), NormalizedLogits(), Correlations())
SHIFT_FREE = tuple(method for method in METHODS if not isinstance(method, RawLogits))


def named(method: LogitMethod) -> str:
    return type(method).__module__.rpartition(".")[2]


def term_of(method: LogitMethod, *, standardize: bool) -> Term:
    """Such a term asks nothing of the networks."""
    return method.model_copy(update={"standardize": standardize}).term(cast(Any, None))


def pair_of_logits(samples: int = 6, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = 2 * draws(samples, classes, seed=seed), 3 * draws(samples, classes, seed=seed + 1)
    return student, teacher, labels(samples, classes, seed)


@pytest.mark.parametrize("method", BY_HAND, ids=named)
@pytest.mark.parametrize("classes", [2, 7])
def test_each_sample_has_the_loss_of_the_formula(method: LogitMethod, classes: int) -> None:
    for seed in range(5):
        student, teacher, target = pair_of_logits(classes=classes, seed=seed)
        rows = zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
        expected = [BY_HAND[method](*row) for row in rows]
        assert method.loss(student, teacher, target).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=named)
class TestEveryMethod:
    def test_does_not_depend_on_the_order_of_the_batch(self, method: LogitMethod) -> None:
        student, teacher, target = pair_of_logits()
        order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
        shuffled = method.loss(student[order], teacher[order], target[order]).mean()
        torch.testing.assert_close(shuffled, method.loss(student, teacher, target).mean())

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("standardize", [False, True])
    def test_bears_every_student(self, method: LogitMethod, case: str, dtype: torch.dtype, standardize: bool) -> None:
        student = HARD_CASES[case](8, 5)
        term = term_of(method, standardize=standardize)
        for teacher in (draws(len(student), 5, dtype=torch.float32), torch.zeros(len(student), 5), 40 * student):
            target = labels(len(student), 5)

            def loss(logits: Tensor, teacher: Tensor = teacher, target: Tensor = target) -> Tensor:
                return term(observation(student=logits, teacher=teacher, target=target))

            assert finite_gradients(loss, student, dtype)

    def test_standardized_takes_no_notice_of_shift_and_scale(self, method: LogitMethod) -> None:
        """Of either network, in each sample apart (Sun et al. 2024)."""
        student, teacher, target = pair_of_logits()
        term = term_of(method, standardize=True)
        scale, shift = 0.5 + draws(6, 1, seed=8).abs(), 5 * draws(6, 1, seed=9)
        plain = term(observation(student=student, teacher=teacher, target=target))
        moved = observation(student=scale * student + shift, teacher=2 * teacher - 1, target=target)
        torch.testing.assert_close(term(moved), plain, rtol=1e-5, atol=1e-6)

    def test_standardized_is_its_own_loss_of_standardized_logits(self, method: LogitMethod) -> None:
        student, teacher, target = pair_of_logits()
        term = term_of(method, standardize=True)
        expected = method.loss(standardized(student), standardized(teacher), target)
        torch.testing.assert_close(term(observation(student=student, teacher=teacher, target=target)), expected)


@pytest.mark.parametrize("method", SHIFT_FREE, ids=named)
def test_what_a_softmax_ignores_changes_nothing(method: LogitMethod) -> None:
    student, teacher, target = pair_of_logits()
    shifted = method.loss(student + 5 * draws(6, 1, seed=9), teacher - 3, target)
    torch.testing.assert_close(shifted, method.loss(student, teacher, target), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", LEAST_AT_THE_TEACHER, ids=named)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(method: LogitMethod) -> None:
    _, teacher, target = pair_of_logits()
    student = teacher.clone().requires_grad_()
    loss = method.loss(student, teacher, target).mean()
    loss.backward()
    assert student.grad is not None
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("make", [SoftTargets, DecoupledTargets, WeightedTargets], ids=lambda make: make.__name__)
def test_gradients_keep_their_size_at_high_temperatures(make: Callable[..., LogitMethod]) -> None:
    _, teacher, target = pair_of_logits()
    norms: list[float] = []
    for temperature in (100.0, 200.0):
        student = (0.1 * teacher.flip(0)).requires_grad_()
        make(temperature=temperature).loss(student, teacher, target).mean().backward()
        assert student.grad is not None
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


class TestRawLogits:
    def test_are_twice_the_limit_of_soft_targets_of_centred_logits(self) -> None:
        student, teacher, target = pair_of_logits()
        student, teacher = student - student.mean(1, keepdim=True), teacher - teacher.mean(1, keepdim=True)
        limit = 2 * soft_targets(student, teacher, 1e4)
        torch.testing.assert_close(RawLogits().loss(student, teacher, target), limit, rtol=1e-3, atol=1e-4)


class TestDecoupledTargets:
    def test_are_soft_targets_where_the_others_weigh_what_the_teacher_gives_them(self) -> None:
        """KL = KL(b_t ‖ b_s) + (1 - p_t[y])·KL(q_t ‖ q_s): DKD §3.1."""
        for seed in range(5):
            student, teacher, target = pair_of_logits(seed=seed)
            left = 1 - (teacher / 4).softmax(1).gather(1, target[:, None]).squeeze(1)
            with_target = decoupled(student, teacher, target, temperature=4, alpha=1, beta=0)
            with_others = decoupled(student, teacher, target, temperature=4, alpha=0, beta=1)
            torch.testing.assert_close(with_target + left * with_others, soft_targets(student, teacher, 4))

    def test_of_two_classes_have_no_others(self) -> None:
        student, teacher, target = pair_of_logits(classes=2)
        others = decoupled(student, teacher, target, temperature=4, alpha=0, beta=1)
        torch.testing.assert_close(others, torch.zeros_like(others))


class TestNormalizedTargets:
    def test_pull_the_other_classes_towards_the_teacher_s(self) -> None:
        """At the teacher's logits only the label's own term is left, whose gradient is p_t[y]·(p - onehot)."""
        _, teacher, target = pair_of_logits()
        student = teacher.clone().requires_grad_()
        NormalizedTargets().loss(student, teacher, target).sum().backward()
        probabilities = teacher.softmax(1)
        sureness = probabilities.gather(1, target[:, None])
        expected = sureness * (probabilities - torch.nn.functional.one_hot(target, 7))
        torch.testing.assert_close(student.grad, expected)


class TestCorrelations:
    def test_equal_the_formula(self) -> None:
        for seed in range(5):
            student, teacher, target = pair_of_logits(seed=seed)
            mine = [softmax(row, 4) for row in student.tolist()]
            theirs = [softmax(row, 4) for row in teacher.tolist()]
            rows = mean([1 - pearson(s, t) for s, t in zip(mine, theirs, strict=True)])
            columns = mean([1 - pearson([s[c] for s in mine], [t[c] for t in theirs]) for c in range(student.shape[1])])
            method = Correlations(beta=0.7, gamma=1.3)
            expected = 4**2 * (0.7 * rows + 1.3 * columns)
            assert float(method.loss(student, teacher, target)) == pytest.approx(expected, rel=1e-5)

    def test_forgive_a_student_that_is_less_sure_in_every_class_alike(self) -> None:
        """Probabilities mixed with the uniform ones are an affine map of them: perfectly correlated."""
        _, teacher, target = pair_of_logits()
        student = (0.3 * (teacher / 4).softmax(1) + 0.7 / 7).log() * 4
        assert float(Correlations().loss(student, teacher, target)) == pytest.approx(0, abs=1e-5)

    def test_are_from_0_to_2_for_opposed_predictions(self) -> None:
        teacher = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], dtype=torch.float64).log()
        opposed = Correlations(temperature=1).loss(teacher.flip(1), teacher, torch.tensor([0, 1, 0]))
        assert float(opposed) == pytest.approx(4, rel=1e-5)

    def test_notice_the_scale_of_logits_unless_they_are_standardized(self) -> None:
        """Correlation ignores affine maps of probabilities, which a scale of the logits is not."""
        student, teacher, target = pair_of_logits()
        plain = Correlations().loss(student, teacher, target)
        assert abs(float(Correlations().loss(3 * student, teacher, target) - plain)) > 1e-3

    def test_of_logits_that_are_standardized_already_stay(self) -> None:
        student, teacher, target = pair_of_logits()
        student, teacher = standardized(student), standardized(teacher)
        term = term_of(Correlations(), standardize=True)
        seen = observation(student=student, teacher=teacher, target=target)
        torch.testing.assert_close(term(seen), Correlations().loss(student, teacher, target), rtol=1e-5, atol=1e-6)


class TestWeightedTargets:
    def test_weigh_little_what_the_student_knows_better_than_the_teacher(self) -> None:
        teacher = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
        sure, lost = torch.tensor([[9.0, 0.0, 0.0]]).double(), torch.tensor([[-9.0, 0.0, 0.0]]).double()
        target = torch.tensor([0])

        def weight(student: Tensor) -> float:
            return float(WeightedTargets().loss(student, teacher, target) / soft_targets(student, teacher, 4))

        assert weight(sure) < 0.01
        assert weight(lost) > 0.99

    def test_let_no_gradient_through_the_weights(self) -> None:
        student, teacher, target = pair_of_logits()
        mine, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
        ratio = (WeightedTargets().loss(student, teacher, target) / soft_targets(student, teacher, 4)).detach()
        WeightedTargets().loss(mine, teacher, target).sum().backward()
        (ratio * soft_targets(plain, teacher, 4)).sum().backward()
        torch.testing.assert_close(mine.grad, plain.grad)


class TestNormalizedLogits:
    def test_take_no_notice_of_the_student_s_scale(self) -> None:
        student, teacher, target = pair_of_logits()
        scaled = NormalizedLogits().loss(3 * student, teacher, target)
        torch.testing.assert_close(scaled, NormalizedLogits().loss(student, teacher, target), rtol=1e-5, atol=1e-8)


class TestTransformedTeacher:
    @pytest.mark.parametrize("method", [TransformedTeacher(), WeightedTransformedTeacher()], ids=named)
    def test_is_matched_by_the_softened_teacher_itself(self, method: LogitMethod) -> None:
        _, teacher, target = pair_of_logits()
        matched = method.loss(teacher / 10, teacher, target)
        torch.testing.assert_close(matched, torch.zeros_like(matched), rtol=0, atol=1e-9)
        assert bool((method.loss(teacher, teacher, target) > 0.01).all())

    def test_weighs_an_unsure_teacher_by_up_to_the_number_of_classes(self) -> None:
        teacher = torch.tensor([[500.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
        student, target = draws(2, 4), torch.tensor([0, 0])
        ratio = WeightedTransformedTeacher().loss(student, teacher, target) / TransformedTeacher().loss(
            student, teacher, target
        )
        assert ratio.tolist() == pytest.approx([1, 4**0.9])


class TestRefinedTargets:
    def test_leave_out_what_the_teacher_puts_above_the_label(self) -> None:
        teacher = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
        target = torch.tensor([1])
        student = torch.tensor([[9.0, 0.5, 1.0, 0.0]], dtype=torch.float64).requires_grad_()
        RefinedTargets(alpha=0).loss(student, teacher, target).sum().backward()
        assert student.grad is not None
        assert student.grad[0, :2].tolist() == [0.0, 0.0]

    def test_of_a_label_that_the_teacher_puts_last_are_its_confidence_alone(self) -> None:
        student, teacher, _ = pair_of_logits()
        last = teacher.argmin(1)
        sure = RefinedTargets(beta=0).loss(student, teacher, last)
        torch.testing.assert_close(RefinedTargets().loss(student, teacher, last), sure)
