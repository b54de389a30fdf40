"""Facts about learning where the head sees each class."""

import math
from collections.abc import Callable

import pytest
import torch
from nets import ConvHead, Encoder, FlatHead, Plain, PreActivation, pair_of
from observations import HARD_CASES, draws, finite_gradients
from torch import Tensor, nn

from potstill.pipeline.data import Batch
from potstill.pipeline.errors import StageError
from potstill.pipeline.taps import outputs_of
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.feature.cat_kd import ClassAttention, activation_distance, class_activations
from potstill.stages.knowledge.method import Observation, Term
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def by_loops(student: list[Tensor], teacher: list[Tensor], normalize: bool) -> float:
    """The paper's formula for one sample: lists of the classes' maps."""
    total = 0.0
    for mine, theirs in zip(student, teacher, strict=True):
        s, t = mine.flatten().tolist(), theirs.flatten().tolist()
        if normalize:
            long, wide = math.sqrt(sum(each * each for each in s)), math.sqrt(sum(each * each for each in t))
            s, t = [each / long for each in s], [each / wide for each in t]
        total += sum((one - other) ** 2 for one, other in zip(s, t, strict=True))
    return total / len(student)


def seen_of(student: nn.Module, teacher: nn.Module, term: Term, images: Tensor) -> Observation:
    inputs = {"image": images}
    with torch.no_grad():
        theirs = outputs_of(teacher, inputs, [match.teacher for match in term.matches])
    mine = outputs_of(student, inputs, [match.student for match in term.matches])
    count = torch.arange(len(images))
    return Observation(Batch(inputs, count % 4, count), Moment(0, 10, 0), mine, theirs, student, teacher)


class TestActivations:
    def test_equal_the_formula(self) -> None:
        maps, weight = draws(2, 3, 4, 6), draws(5, 3, seed=1)
        found = class_activations(maps, weight, 2)
        for sample in range(2):
            for label in range(5):
                cam = [
                    [
                        sum(float(weight[label, k] * maps[sample, k, row, column]) for k in range(3))
                        for column in range(6)
                    ]
                    for row in range(4)
                ]
                for row in range(2):
                    for column in range(2):
                        places = [cam[2 * row + y][3 * column + x] for y in range(2) for x in range(3)]
                        assert float(found[sample, label, row, column]) == pytest.approx(sum(places) / 6, rel=1e-9)

    def test_have_the_logits_as_their_means(self) -> None:
        """But for the head's bias."""
        model = Plain().eval()
        outputs = outputs_of(model, {"image": torch.randn(3, 1, 16, 16)}, ["stage3"])
        found = class_activations(outputs.maps["stage3"], model.head.weight, 2).mean((2, 3))
        torch.testing.assert_close(found + model.head.bias, outputs.logits)


class TestDistance:
    @pytest.mark.parametrize("normalize", [True, False])
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_the_formula(self, seed: int, normalize: bool) -> None:
        student, teacher = draws(3, 5, 2, 2, seed=seed), draws(3, 5, 2, 2, seed=seed + 9)
        found = activation_distance(student, teacher, normalize=normalize)
        for number in range(3):
            expected = by_loops(list(student[number]), list(teacher[number]), normalize)
            assert float(found[number]) == pytest.approx(expected, rel=1e-9)

    def test_does_not_depend_on_the_scale_of_any_map(self) -> None:
        student, teacher = draws(3, 5, 2, 2), draws(3, 5, 2, 2, seed=1)
        scales = draws(3, 5, 1, 1, seed=2).exp()
        torch.testing.assert_close(
            activation_distance(scales * student, teacher), activation_distance(student, teacher)
        )
        assert activation_distance(scales * teacher, teacher).max() < 1e-12
        assert activation_distance(2 * teacher, teacher, normalize=False).min() > 0

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("normalize", [True, False])
    def test_is_finite(self, case: str, dtype: torch.dtype, normalize: bool) -> None:
        student = HARD_CASES[case](4, 5, 2, 2)
        teacher = draws(len(student), 5, 2, 2, dtype=torch.float32)

        def loss(mine: Tensor) -> Tensor:
            return activation_distance(mine, teacher, normalize=normalize)

        assert finite_gradients(loss, student, dtype)


class TestTerm:
    def test_is_zero_for_the_teacher_itself(self, new_context: NewContext) -> None:
        model = Plain().eval()
        term = ClassAttention().term(pair_of(model, model, new_context()))
        loss = term(seen_of(model, model, term, torch.randn(4, 1, 16, 16)))
        assert isinstance(loss, Tensor)
        torch.testing.assert_close(loss, torch.zeros(4))

    def test_reaches_the_students_head_and_layers(self, new_context: NewContext) -> None:
        student, teacher = Plain().train(), Plain(8).eval().requires_grad_(requires_grad=False)
        term = ClassAttention().term(pair_of(student, teacher, new_context()))
        loss = term(seen_of(student, teacher, term, torch.randn(4, 1, 16, 16)))
        assert isinstance(loss, Tensor)
        loss.mean().backward()
        for parameter in (student.head.weight, student.stage1.conv.weight):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0

    def test_is_what_the_function_says(self, new_context: NewContext) -> None:
        student, teacher, images = Plain().eval(), Plain(8).eval(), torch.randn(4, 1, 16, 16)
        term = ClassAttention(resolution=3).term(pair_of(student, teacher, new_context()))
        maps = [outputs_of(model, {"image": images}, ["stage3"]).maps["stage3"] for model in (student, teacher)]
        mine = class_activations(maps[0], student.head.weight, 3)
        theirs = class_activations(maps[1], teacher.head.weight, 3)
        torch.testing.assert_close(term(seen_of(student, teacher, term, images)), activation_distance(mine, theirs))

    def test_reads_tokens_as_maps(self, new_context: NewContext) -> None:
        student, teacher = Plain().eval(), Encoder().eval()
        term = ClassAttention().term(pair_of(student, teacher, new_context()))
        assert str(term.matches[0]) == "stage3 → norm"
        loss = term(seen_of(student, teacher, term, torch.randn(4, 1, 16, 16)))
        assert isinstance(loss, Tensor)
        assert loss.shape == (4,)

    @pytest.mark.parametrize(
        ("teacher", "why"),
        [
            (FlatHead, "the teacher does not end in maps"),
            (ConvHead, "the teacher does not end in a linear layer"),
            (PreActivation, "the teacher does not end in maps"),
            (lambda: Encoder(class_token=True), "the teacher does not end in maps"),
        ],
    )
    def test_refuses_heads_that_stand_on_something_else(
        self, teacher: Callable[[], nn.Module], why: str, new_context: NewContext
    ) -> None:
        with pytest.raises(StageError, match=rf"`cat_kd`: {why}.* Methods that can serve this pair: .*`kd`"):
            ClassAttention().term(pair_of(Plain(), teacher(), new_context(), method="cat_kd"))
