"""Facts about learning where a class is seen."""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from nets import Encoder, FlatHead, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.data import Batch
from potstill.pipeline.errors import StageError
from potstill.pipeline.taps import Outputs, outputs_of
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.feature.lwm import GradCams, attention_distance, class_map
from potstill.stages.knowledge.method import Observation
from potstill.stages.knowledge.pair import LayerPair
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def grad_cam_by_differences(model: Plain, image: Tensor, target: int) -> list[list[float]]:
    """The formula for one image at `stage2`, every derivative from moving one value of the map there."""

    def score(maps: Tensor) -> float:
        return float(model.head(model.pool(model.stage3(maps)).flatten(1))[0, target])

    with torch.no_grad():
        maps = model.stage2(model.stage1(image))
        _, channels, height, width = maps.shape
        alphas: list[float] = []
        for channel in range(channels):
            total = 0.0
            for row in range(height):
                for column in range(width):
                    moved = [maps.clone(), maps.clone()]
                    moved[0][0, channel, row, column] += 1e-5
                    moved[1][0, channel, row, column] -= 1e-5
                    total += (score(moved[0]) - score(moved[1])) / 2e-5
            alphas.append(total / (height * width))
        return [
            [
                max(sum(alphas[k] * float(maps[0, k, row, column]) for k in range(channels)), 0.0)
                for column in range(width)
            ]
            for row in range(height)
        ]


def seen_of(
    student: nn.Module, teacher: nn.Module, taps: tuple[str, str], images: Tensor, target: Tensor
) -> Observation:
    """A training step of two networks, the teacher run without gradients as always."""
    inputs = {"image": images}
    with torch.no_grad():
        theirs = outputs_of(teacher, inputs, [taps[1]])
    return Observation(
        Batch(inputs, target, torch.arange(len(target))),
        Moment(0, 10, 0),
        outputs_of(student, inputs, [taps[0]]),
        theirs,
        student,
        teacher,
    )


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(requires_grad=False)


class TestClassMap:
    @pytest.mark.parametrize("relu", ["module", "inplace", "function"])
    def test_is_grad_cam(self, relu: Literal["module", "inplace", "function"]) -> None:
        torch.manual_seed(0)
        model = Plain(2, relu).double().eval()
        images, target = draws(2, 1, 8, 8), torch.tensor([3, 1])
        found = class_map(outputs_of(model, {"image": images}, ["stage2"]), "stage2", target)
        for number in range(2):
            expected = grad_cam_by_differences(model, images[number : number + 1], int(target[number]))
            torch.testing.assert_close(found[number, 0], torch.tensor(expected), rtol=1e-4, atol=1e-6)

    def test_before_a_mean_and_a_linear_layer_is_the_class_activation_map(self) -> None:
        """There Grad-CAM is the older CAM, divided by the number of places."""
        torch.manual_seed(0)
        model = Plain().eval()
        outputs = outputs_of(model, {"image": torch.randn(3, 1, 16, 16)}, ["stage3"])
        target = torch.tensor([0, 3, 2])
        cam = torch.einsum("bk,bkhw->bhw", model.head.weight[target], outputs.maps["stage3"]).relu() / 16
        torch.testing.assert_close(class_map(outputs, "stage3", target)[:, 0], cam)

    def test_has_gradients_through_the_weighting_too(self) -> None:
        """Of the head's weights, which enter only there."""
        model = Plain().train()
        outputs = outputs_of(model, {"image": torch.randn(3, 1, 16, 16)}, ["stage3"])
        class_map(outputs, "stage3", torch.tensor([0, 3, 2])).sum().backward()
        assert model.head.weight.grad is not None
        assert model.head.weight.grad.abs().sum() > 0


class TestDistance:
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_formula(self, seed: int) -> None:
        student, teacher = draws(3, 1, 4, 5, seed=seed).relu(), draws(3, 1, 4, 5, seed=seed + 9).relu()
        for number, found in enumerate(attention_distance(student, teacher).tolist()):
            mine = [value for row in student[number, 0].tolist() for value in row]
            theirs = [value for row in teacher[number, 0].tolist() for value in row]
            long, wide = math.sqrt(sum(s * s for s in mine)), math.sqrt(sum(t * t for t in theirs))
            expected = sum(abs(s / long - t / wide) for s, t in zip(mine, theirs, strict=True))
            assert found == pytest.approx(expected, rel=1e-12)

    def test_does_not_depend_on_the_maps_scale(self) -> None:
        student, teacher = draws(3, 1, 4, 4).relu(), draws(3, 1, 4, 4, seed=1).relu()
        torch.testing.assert_close(attention_distance(7 * student, teacher), attention_distance(student, teacher))
        assert attention_distance(7 * teacher, teacher).abs().max() < 1e-12

    def test_compares_maps_of_other_sizes_at_the_smaller(self) -> None:
        teacher = draws(2, 1, 4, 4).abs()
        student = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
        assert attention_distance(student, teacher).abs().max() < 1e-12

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_finite(self, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](4, 1, 4, 4)
        teacher = draws(len(student), 1, 4, 4, dtype=torch.float32).relu()
        for theirs in (teacher, torch.zeros_like(teacher)):

            def loss(mine: Tensor, theirs: Tensor = theirs) -> Tensor:
                return attention_distance(mine.relu(), theirs)

            assert finite_gradients(loss, student, dtype)


class TestTerm:
    def test_takes_the_deepest_maps_alone(self, new_context: NewContext) -> None:
        term = GradCams().term(pair_of(Plain(), Plain(8), new_context()))
        assert [str(match) for match in term.matches] == ["stage3 → stage3"]

    @pytest.mark.parametrize("of", ["label", "teacher"])
    def test_is_zero_for_the_teacher_itself(self, of: Literal["label", "teacher"], new_context: NewContext) -> None:
        model = frozen(Plain())
        student = Plain().eval()
        student.load_state_dict(model.state_dict())
        term = GradCams(of=of).term(pair_of(student, model, new_context()))
        seen = seen_of(student, model, ("stage3", "stage3"), torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 3]))
        loss = term(seen)
        assert isinstance(loss, Tensor)
        torch.testing.assert_close(loss, torch.zeros(4), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("of", ["label", "teacher"])
    def test_compares_the_maps_of_one_class(self, of: Literal["label", "teacher"], new_context: NewContext) -> None:
        student, teacher = Plain().eval(), frozen(Plain(8))
        images, target = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 3])
        term = GradCams(of=of).term(pair_of(student, teacher, new_context()))
        seen = seen_of(student, teacher, ("stage3", "stage3"), images, target)
        chosen = target if of == "label" else teacher(images).argmax(1)
        maps = [
            class_map(outputs_of(model, {"image": images.clone().requires_grad_()}, ["stage3"]), "stage3", chosen)
            for model in (student, teacher)
        ]
        torch.testing.assert_close(term(seen), attention_distance(*maps))

    def test_reaches_the_student_and_not_the_teacher(self, new_context: NewContext) -> None:
        student, teacher = Plain().train(), frozen(Plain(8))
        named = (LayerPair(student="stage1", teacher="stage2"), LayerPair(student="stage3", teacher="stage3"))
        term = GradCams(layers=named).term(pair_of(student, teacher, new_context()))
        images = torch.randn(4, 1, 16, 16)
        outputs = outputs_of(student, {"image": images}, ["stage1", "stage3"])
        seen = seen_of(student, teacher, ("stage3", "stage3"), images, torch.tensor([0, 1, 2, 3]))
        seen = Observation(seen.batch, seen.moment, outputs, seen.teacher, student, teacher)
        loss = term(seen)
        assert isinstance(loss, Tensor)
        (loss.mean() + outputs.logits.sum()).backward()
        gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert images.grad is None

    def test_does_not_change_other_gradients(self, new_context: NewContext) -> None:
        """The student's parameters get none while its maps are differentiated."""
        student, teacher = Plain().train(), frozen(Plain(8))
        term = GradCams().term(pair_of(student, teacher, new_context()))
        term(seen_of(student, teacher, ("stage3", "stage3"), torch.randn(4, 1, 16, 16), torch.arange(4)))
        assert all(parameter.grad is None for parameter in student.parameters())

    def test_refuses_networks_without_maps(self, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"`lwm`: .* maps \(B, C, H, W\).*Methods that can serve"):
            GradCams().term(pair_of(Encoder(), Encoder(), new_context(), method="lwm"))

    def test_serves_heads_that_no_mean_comes_before(self, new_context: NewContext) -> None:
        assert GradCams().term(pair_of(FlatHead(), Plain(), new_context())).matches

    def test_is_blind_to_the_order_of_samples(self, new_context: NewContext) -> None:
        student, teacher = Plain().eval(), frozen(Plain(8))
        term = GradCams().term(pair_of(student, teacher, new_context()))
        images, order = torch.randn(5, 1, 16, 16), torch.tensor([3, 1, 4, 0, 2])
        taps = ("stage3", "stage3")
        usual = term(seen_of(student, teacher, taps, images, torch.zeros(5, dtype=torch.int64)))
        other = term(seen_of(student, teacher, taps, images[order], torch.zeros(5, dtype=torch.int64)))
        assert isinstance(usual, Tensor)
        torch.testing.assert_close(other, usual[order])


def test_observations_of_tensors_alone_have_no_gradients() -> None:
    """So that a method that needs them fails in its tests rather than seeing zeros."""
    seen = observation(student=draws(2, 4), student_maps={"maps": draws(2, 3, 4, 4)})
    with pytest.raises(KeyError):
        class_map(Outputs(seen.student.logits, seen.student.maps), "maps", torch.tensor([0, 1]))
