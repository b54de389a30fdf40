"""Facts about the contrast of features with those kept of all training samples."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients, labels, observation
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.data import Batch, Split
from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.method import Observation, Term
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.relation.crd import Contrast, Others, log_sum_over_bank, moved_towards, noise_contrast

NewPair = Callable[..., Pair]

TAP = "linear:input"
WIDTHS = (32, 64)
"""Of the features of the pair's networks."""


def noise_contrast_by_loops(scores: list[list[float]], total: float, count: int) -> list[float]:
    """The loss with its probabilities spelled out; the positive comes first in each row."""
    losses: list[float] = []
    for row in scores:
        noise = (len(row) - 1) / count
        probabilities = [math.exp(score) / total for score in row]
        loss = -math.log(probabilities[0] / (probabilities[0] + noise))
        for probability in probabilities[1:]:
            loss -= math.log(noise / (probability + noise))
        losses.append(loss)
    return losses


def new_term(pair: Pair, **given: Any) -> Term:
    torch.manual_seed(0)
    return Contrast.model_validate({"negatives": 12, "width": 6, **given}).term(pair)


def seen_of(student: Tensor, teacher: Tensor, index: list[int]) -> Observation:
    seen = observation(student_maps={TAP: student}, teacher_maps={TAP: teacher})
    return replace(seen, batch=Batch({}, torch.zeros(len(index), dtype=torch.int64), torch.tensor(index)))


def loss_of(term: Term, seen: Observation) -> Tensor:
    """Of each sample."""
    found = term(seen)
    assert isinstance(found, Tensor)
    return found


def some(seed: int = 0, index: tuple[int, ...] = (4, 0, 150)) -> Observation:
    mine, theirs = (draws(len(index), width, seed=seed + width, dtype=torch.float32) for width in WIDTHS)
    return seen_of(mine, theirs, list(index))


class TestFormula:
    @given(seed=st.integers(0, 1000), negatives=st.integers(1, 6), count=st.integers(2, 50))
    @settings(max_examples=20, deadline=None)
    def test_equals_a_reading_number_by_number(self, seed: int, negatives: int, count: int) -> None:
        scores = 3 * draws(4, 1 + negatives, seed=seed)
        found = noise_contrast(scores, torch.tensor(math.log(7.5)).double(), count)
        assert found.tolist() == pytest.approx(noise_contrast_by_loops(scores.tolist(), 7.5, count))

    def test_bears_scores_whose_exponentials_have_no_number(self) -> None:
        scores = torch.tensor([[2000.0, -2000.0], [-2000.0, 2000.0]]).requires_grad_()
        loss = noise_contrast(scores, torch.tensor(0.0), 10)
        (gradient,) = torch.autograd.grad(loss.sum(), scores)
        assert bool(torch.isfinite(loss).all())
        assert bool(torch.isfinite(gradient).all())

    def test_the_sum_over_a_bank_is_told_from_all_scores_alike(self) -> None:
        scores = draws(3, 8)
        assert float(log_sum_over_bank(scores, 20)) == pytest.approx(math.log(20 * float(scores.exp().mean())))

    def test_banks_move_and_keep_their_length(self) -> None:
        bank, features = functional.normalize(draws(5, 3), dim=1), functional.normalize(draws(2, 3, seed=1), dim=1)
        moved = moved_towards(bank, torch.tensor([3, 1]), features, 0.25)
        for row, new in ((3, features[0]), (1, features[1])):
            mixed = 0.25 * bank[row] + 0.75 * new
            torch.testing.assert_close(moved[row], mixed / mixed.square().sum().sqrt())
        torch.testing.assert_close(moved[[0, 2, 4]], bank[[0, 2, 4]], rtol=0, atol=0)


class TestNegatives:
    @pytest.mark.parametrize("groups", [labels(40, 3), torch.arange(40), torch.tensor([0, 0, 0, 1]), torch.arange(2)])
    def test_are_all_of_other_groups_and_evenly_drawn(self, groups: Tensor) -> None:
        torch.manual_seed(0)
        drawn = Others(groups).draw(torch.arange(len(groups)), 8000)
        for sample, row in enumerate(drawn):
            others = (groups != groups[sample]).nonzero().flatten()
            counts = torch.bincount(row, minlength=len(groups))
            assert int(counts.sum()) == int(counts[others].sum())
            expected = 8000 / len(others)
            assert bool(((counts[others] - expected).abs() <= 6 * math.sqrt(expected)).all())

    def test_come_from_the_global_generator(self) -> None:
        others, index = Others(labels(30, 3)), torch.arange(5)
        torch.manual_seed(1)
        first = others.draw(index, 9)
        assert not torch.equal(others.draw(index, 9), first)
        torch.manual_seed(1)
        assert torch.equal(others.draw(index, 9), first)

    @pytest.mark.parametrize("origin", ["other classes", "other samples"])
    def test_of_a_small_data_set_never_hold_the_positive(self, origin: str, new_pair: NewPair) -> None:
        """More negatives than samples: they are drawn with replacement."""
        pair = with_target(new_pair(), torch.tensor([0, 1, 1]))
        term = new_term(pair, negatives=500, negatives_from=origin)
        loss = loss_of(term, some(index=(0, 2)))
        assert bool(torch.isfinite(loss).all())
        torch.manual_seed(0)
        drawn = term.get_submodule("others")
        assert isinstance(drawn, Others)
        negatives = drawn.draw(torch.tensor([0, 2]), 500)
        assert set(negatives[0].tolist()) == {1, 2}
        assert set(negatives[1].tolist()) == ({0} if origin == "other classes" else {0, 1})


def with_target(pair: Pair, target: Tensor) -> Pair:
    train = Split({"image": torch.zeros(len(target), 1, 16, 16)}, target, normalizations={})
    return replace(pair, context=replace(pair.context, data=replace(pair.context.data, train=train)))


class TestTerm:
    def test_compares_each_network_with_what_is_kept_of_the_other(self, new_pair: NewPair) -> None:
        """The first step, put together sample by sample."""
        term, seen = new_term(new_pair(), negatives=3), some()
        start = deepcopy(term.state_dict())
        torch.manual_seed(3)
        found = loss_of(term, seen)
        torch.manual_seed(3)
        others = term.get_submodule("others")
        assert isinstance(others, Others)
        negatives = others.draw(seen.batch.index, 3)
        expected = [0.0, 0.0, 0.0]
        for own, other in (("teacher", "student"), ("student", "teacher")):
            features = (seen.teacher if own == "teacher" else seen.student).maps[TAP]
            embedded = features @ start[f"{own}_embedding.weight"].T + start[f"{own}_embedding.bias"]
            scores: list[list[float]] = []
            for sample, index in enumerate(seen.batch.index.tolist()):
                direction = embedded[sample] / embedded[sample].norm()
                rows = [start[f"{other}_bank"][row] for row in (index, *negatives[sample].tolist())]
                scores.append([float(direction @ row) / 0.07 for row in rows])
            exponentials = [math.exp(score) for row in scores for score in row]
            total = 160 * sum(exponentials) / len(exponentials)
            expected = [a + b for a, b in zip(expected, noise_contrast_by_loops(scores, total, 160), strict=True)]
        assert found.tolist() == pytest.approx(expected, rel=1e-4)

    def test_the_first_batch_fixes_the_normalising_sums(self, new_pair: NewPair) -> None:
        term = new_term(new_pair())
        term(some())
        fixed = term.state_dict()["log_sums"].clone()
        term(some(seed=5, index=(7, 8, 9)))
        assert torch.equal(term.state_dict()["log_sums"], fixed)
        assert bool((fixed != 0).all())

    def test_keeps_the_features_of_the_samples_it_saw_and_of_no_others(self, new_pair: NewPair) -> None:
        term = new_term(new_pair(), momentum=0)
        before = deepcopy(term.state_dict())
        seen = some()
        term(seen)
        after = term.state_dict()
        for whose, features in (("student", seen.student), ("teacher", seen.teacher)):
            changed = (after[f"{whose}_bank"] != before[f"{whose}_bank"]).any(1).nonzero().flatten()
            assert changed.tolist() == [0, 4, 150]
            embedding = term.get_submodule(f"{whose}_embedding")
            expected = functional.normalize(embedding(features.maps[TAP]), dim=1)
            torch.testing.assert_close(after[f"{whose}_bank"][seen.batch.index], expected.detach())

    def test_goes_on_from_its_state_as_if_nothing_had_happened(self, new_pair: NewPair) -> None:
        pair = new_pair()
        term, again = new_term(pair), Contrast(negatives=12, width=6).term(pair)
        term(some())
        again.load_state_dict(deepcopy(term.state_dict()))
        found: list[Tensor] = []
        for each in (term, again):
            torch.manual_seed(4)
            found.append(loss_of(each, some(seed=5)))
        assert torch.equal(*found)
        assert torch.equal(again.state_dict()["student_bank"], term.state_dict()["student_bank"])

    def test_trains_both_embeddings_and_the_student_after_the_banks_have_moved(self, new_pair: NewPair) -> None:
        term = new_term(new_pair())
        leaf = draws(3, WIDTHS[0], dtype=torch.float32).requires_grad_()
        seen = seen_of(leaf, draws(3, WIDTHS[1], dtype=torch.float32), [1, 2, 3])
        loss = loss_of(term, seen)
        assert loss.shape == (3,)
        loss.mean().backward()
        assert leaf.grad is not None
        assert bool(leaf.grad.any())
        assert len(list(term.parameters())) == 4
        assert all(each.grad is not None and bool(each.grad.any()) for each in term.parameters())

    def test_embeddings_learn_to_tell_samples_apart(self, new_pair: NewPair) -> None:
        """Then a sample that comes with the features of another costs more."""
        term = new_term(new_pair())
        optimizer = torch.optim.SGD(term.parameters(), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            loss_of(term, some()).mean().backward()
            optimizer.step()
        own = loss_of(deepcopy(term), some()).mean().detach()
        mistaken = seen_of(some().student.maps[TAP].roll(1, 0), some().teacher.maps[TAP], [4, 0, 150])
        assert float(own) < float(loss_of(deepcopy(term), mistaken).mean().detach()) - 1

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_bears_hard_cases(self, case: str, dtype: torch.dtype, new_pair: NewPair) -> None:
        term, student = new_term(new_pair()), HARD_CASES[case](6, WIDTHS[0])
        teacher = draws(len(student), WIDTHS[1], dtype=torch.float32)
        assert finite_gradients(
            lambda mine: loss_of(term, seen_of(mine, teacher, list(range(len(mine))))), student, dtype
        )


class TestRefusals:
    def test_a_network_without_a_linear_head(self, new_pair: NewPair, without_maps: nn.Module) -> None:
        with pytest.raises(StageError, match=r"student does not end in a linear layer.*Methods that can serve.*`dkd`"):
            new_term(new_pair(without_maps))

    def test_samples_of_one_class(self, new_pair: NewPair) -> None:
        pair = with_target(new_pair(), torch.zeros(5, dtype=torch.int64))
        with pytest.raises(StageError, match=r"no training sample has other classes.*Methods that can serve.*`dkd`"):
            new_term(pair)
        assert new_term(pair, negatives_from="other samples").matches
