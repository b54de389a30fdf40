"""Facts about boundary supporting samples."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from by_hand import kl, softmax
from observations import draws, observation
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.method import Observation
from potstill.stages.knowledge.pair import Pair
from potstill.stages.knowledge.response.bss import BoundarySamples, across_boundary, drawn_classes
from potstill.stages.stage import Context

NewPair = Callable[..., Pair]
NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


class TestDrawnClasses:
    def test_come_as_often_as_the_teacher_finds_them_likely(self) -> None:
        torch.manual_seed(0)
        logits = torch.tensor([[0.0, 4.0, 1.0, -1.0]]).expand(20_000, 4)
        drawn = drawn_classes(logits, torch.ones(20_000, dtype=torch.int64))
        shares = torch.bincount(drawn, minlength=4) / 20_000
        total = 1 + math.e + 1 / math.e
        assert shares.tolist() == pytest.approx([1 / total, 0, math.e / total, 1 / math.e / total], abs=0.02)

    def test_exist_for_a_teacher_that_rules_out_all_others(self) -> None:
        base = torch.tensor([0, 1, 2])
        drawn = drawn_classes(1000 * torch.eye(3), base)
        assert bool((drawn != base).all())

    def test_are_the_same_for_the_same_seed(self) -> None:
        """Each step of a training seeds the global generator, so that a resumed one draws what it would have drawn."""
        logits, base = draws(64, 9), torch.zeros(64, dtype=torch.int64)
        torch.manual_seed(3)
        first = drawn_classes(logits, base)
        torch.manual_seed(3)
        assert torch.equal(drawn_classes(logits, base), first)


def moved_by_hand(point: list[float], weights: list[list[float]], base: int, goal: int, steps: int) -> list[float]:
    """The attack on a linear classifier, with the gradient of the softmax written out."""
    for _ in range(steps):
        logits = [sum(w * x for w, x in zip(row, point, strict=True)) for row in weights]
        if logits.index(max(logits)) != base:
            break
        p = softmax(logits)
        average = [sum(p[c] * weights[c][at] for c in range(len(p))) for at in range(len(point))]
        slope = [
            p[base] * (weights[base][at] - average[at]) - p[goal] * (weights[goal][at] - average[at])
            for at in range(len(point))
        ]
        length = math.sqrt(sum(s * s for s in slope))
        point = [x - 0.3 * (p[base] - p[goal] + 1e-4) * s / length for x, s in zip(point, slope, strict=True)]
    return point


def linear(weights: Tensor) -> Callable[[Tensor], Tensor]:
    def classify(samples: Tensor) -> Tensor:
        return samples @ weights.T

    return classify


class TestAcrossBoundary:
    @pytest.mark.parametrize("steps", [1, 4, 30])
    def test_follows_the_formula(self, steps: int) -> None:
        weights = draws(3, 5)
        samples = torch.cat([draws(6, 5, seed=1), 99 * torch.ones(1, 5), -99 * torch.ones(1, 5)]).double()
        base = (samples @ weights.T).argmax(1)
        goal = (base + 1) % 3
        moved = across_boundary(linear(weights), samples, base, goal, steps=steps, step_size=0.3)
        for sample in range(6):  # the last two are there for their range, which nothing then leaves
            expected = moved_by_hand(
                samples[sample].tolist(), weights.tolist(), int(base[sample]), int(goal[sample]), steps
            )
            assert moved[sample].tolist() == pytest.approx(expected)

    def test_ends_just_across_the_boundary(self) -> None:
        """Of two classes, so that there is no third to end in."""
        weights, samples = draws(2, 5), draws(16, 5, seed=1)
        base = (samples @ weights.T).argmax(1)
        moved = across_boundary(linear(weights), samples, base, 1 - base, steps=100, step_size=0.3)
        found = (moved @ weights.T).softmax(1)
        assert torch.equal(found.argmax(1), 1 - base)
        assert float(found.max()) < 0.6

    def test_stays_within_the_range_of_the_samples(self) -> None:
        weights, samples = draws(2, 5), draws(16, 5, seed=1)
        base = (samples @ weights.T).argmax(1)
        moved = across_boundary(linear(weights), samples, base, 1 - base, steps=5, step_size=100)
        assert float(moved.min()) >= float(samples.min())
        assert float(moved.max()) <= float(samples.max())

    def test_leaves_samples_where_the_classifier_is_flat(self) -> None:
        samples = draws(4, 5)
        base = torch.zeros(4, dtype=torch.int64)
        moved = across_boundary(linear(torch.zeros(3, 5).double()), samples, base, base + 1, steps=3, step_size=1)
        torch.testing.assert_close(moved, samples)


class Linear(nn.Module):
    """Four classes of 1×16×16 images by a linear map of the first three pixels."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :3] @ self.weights.T


def seen_of(student: nn.Module, teacher: nn.Module, image: Tensor, target: Tensor) -> Observation:
    return observation(
        student=student(image),
        teacher=teacher(image).detach(),
        target=target,
        inputs={"image": image},
        student_model=student,
        teacher_model=deepcopy(teacher).eval().requires_grad_(requires_grad=False),
    )


class TestTerm:
    def test_is_the_mean_of_soft_targets_over_the_moved_samples(self, new_pair: NewPair) -> None:
        image = draws(12, 1, 16, 16, dtype=torch.float32)
        weights, noise = draws(4, 3, dtype=torch.float32), draws(4, 3, seed=5, dtype=torch.float32)
        student, teacher = Linear(weights + 0.1 * noise), Linear(2 * weights)
        target = teacher(image).argmax(1)
        method = BoundarySamples(samples=8, steps=200)
        torch.manual_seed(1)
        loss = method.term(new_pair(student, teacher))(seen_of(student, teacher, image, target))
        torch.manual_seed(1)
        both = (student(image).argmax(1) == target).nonzero().squeeze(1)[:8]
        goal = drawn_classes(teacher(image)[both].detach(), target[both])
        moved = across_boundary(teacher, image[both], target[both], goal, steps=200, step_size=0.3)
        kept = [at for at, (row, k) in enumerate(zip(teacher(moved), goal, strict=True)) if int(row.argmax()) == int(k)]
        assert 0 < len(kept) <= len(both)
        expected = [
            9 * kl(softmax(teacher(moved)[at].tolist(), 3), softmax(student(moved)[at].tolist(), 3)) for at in kept
        ]
        assert isinstance(loss, Tensor)
        assert loss.shape == (12,)
        assert [at for at, value in enumerate(loss.tolist()) if value] == [int(both[at]) for at in kept]
        assert float(loss.detach().mean()) == pytest.approx(sum(expected) / len(expected), rel=1e-4)

    def test_is_zero_where_no_sample_is_classified_right(self, new_pair: NewPair) -> None:
        image = draws(6, 1, 16, 16, dtype=torch.float32)
        model = Linear(draws(4, 3, dtype=torch.float32))
        wrong = (model(image).argmax(1) + 1) % 4
        loss = BoundarySamples().term(new_pair(model, model))(seen_of(model, model, image, wrong))
        assert isinstance(loss, Tensor)
        assert not loss.any()
        loss.sum().backward()
        assert model.weights.grad is not None

    def test_is_zero_for_a_copy_of_the_teacher(self, new_pair: NewPair) -> None:
        image = draws(6, 1, 16, 16, dtype=torch.float32)
        model = Linear(draws(4, 3, dtype=torch.float32))
        loss = BoundarySamples(steps=100).term(new_pair(model, model))(
            seen_of(model, model, image, model(image).argmax(1))
        )
        assert isinstance(loss, Tensor)
        torch.testing.assert_close(loss, torch.zeros(6), rtol=0, atol=1e-5)

    def test_leaves_no_trace_in_either_network(
        self, new_pair: NewPair, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        student, teacher = new_artifact(seed=1).model.train(), new_artifact(seed=2).model
        batch = new_context().data.train.batch(torch.arange(16))
        image = batch.inputs["image"]
        seen = seen_of(student, teacher, image, teacher(image).argmax(1))
        frozen = seen.teacher_model
        assert frozen is not None
        before = deepcopy((student.state_dict(), frozen.state_dict()))
        loss = BoundarySamples(step_size=30).term(new_pair(student, teacher))(seen)
        assert isinstance(loss, Tensor)
        loss.mean().backward()
        for state, model in zip(before, (student, frozen), strict=True):
            assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert all(module.training for module in student.modules())
        assert not any(module.training for module in frozen.modules())
        assert all(parameter.grad is None for parameter in frozen.parameters())

    def test_several_inputs_are_refused(self, new_pair: NewPair) -> None:
        model = Sum()
        inputs = {"left": draws(2, 4, dtype=torch.float32), "right": draws(2, 4, dtype=torch.float32)}
        with pytest.raises(StageError, match=r"one input.*`kd`"):
            BoundarySamples().term(new_pair(model, model, inputs))


class Sum(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right
