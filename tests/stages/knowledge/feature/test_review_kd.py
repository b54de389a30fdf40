"""Facts about reviewing all of the student's levels at each of the teacher's."""

import math
from collections.abc import Callable

import pytest
import torch
from nets import ConvHead, Encoder, FlatHead, Plain, PreActivation, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.errors import StageError
from potstill.pipeline.taps import outputs_of
from potstill.stages.knowledge.feature.review_kd import Fusion, KnowledgeReview, context_loss, review
from potstill.stages.knowledge.method import Observation, Term
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def context_by_loops(student: Tensor, teacher: Tensor) -> float:
    """The hierarchical context loss of one sample of square maps, whose size a power of two."""
    channels, size, _ = student.shape
    total, weights, weight = 0.0, 0.0, 1.0
    for places in [size, *(each for each in (4, 2, 1) if each < size)]:
        step = size // places
        squares = 0.0
        for channel in range(channels):
            for row in range(places):
                for column in range(places):
                    window = [(step * row + y, step * column + x) for y in range(step) for x in range(step)]
                    mine = sum(float(student[channel, y, x]) for y, x in window) / step**2
                    theirs = sum(float(teacher[channel, y, x]) for y, x in window) / step**2
                    squares += (mine - theirs) ** 2
        total += weight * squares / (channels * places * places)
        weights += weight
        weight /= 2
    return total / weights


def normed(value: float, norm: nn.BatchNorm2d, channel: int) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scaled = (value - float(norm.running_mean[channel])) / math.sqrt(float(norm.running_var[channel]) + norm.eps)
    return scaled * float(norm.weight[channel]) + float(norm.bias[channel])


def fusion_by_loops(fusion: Fusion, maps: Tensor, deeper: Tensor) -> Tensor:
    """One sample through a fusion, pixel by pixel: the maps like the teacher's, of the student's size."""
    (enter, norm), (attend, _), (leave, last) = fusion.enter, fusion.attend or (None, None), fusion.leave
    assert attend is not None
    channels, height, width = maps.shape
    inner = enter.weight.shape[0]
    fused = torch.zeros(inner, height, width, dtype=maps.dtype)
    for row in range(height):
        for column in range(width):
            mine = [
                normed(sum(float(enter.weight[k, c, 0, 0] * maps[c, row, column]) for c in range(channels)), norm, k)
                for k in range(inner)
            ]
            y, x = row * deeper.shape[1] // height, column * deeper.shape[2] // width
            below = [float(deeper[k, y, x]) for k in range(inner)]
            gates: list[float] = []
            for gate in range(2):
                score = sum(float(attend.weight[gate, k, 0, 0]) * each for k, each in enumerate([*mine, *below]))
                gates.append(1 / (1 + math.exp(-score - float(attend.bias[gate]))))
            for k in range(inner):
                fused[k, row, column] = gates[0] * mine[k] + gates[1] * below[k]
    out = torch.zeros(leave.weight.shape[0], height, width, dtype=maps.dtype)
    for channel in range(len(out)):
        for row in range(height):
            for column in range(width):
                total = 0.0
                for y in range(3):
                    for x in range(3):
                        if 0 <= row + y - 1 < height and 0 <= column + x - 1 < width:
                            place = fused[:, row + y - 1, column + x - 1]
                            total += sum(float(leave.weight[channel, k, y, x] * place[k]) for k in range(inner))
                out[channel, row, column] = normed(total, last, channel)
    return out


def seen_of(student: nn.Module, teacher: nn.Module, term: Term, count: int = 6) -> Observation:
    image = {"image": torch.randn(count, 1, 16, 16)}
    mine = outputs_of(student, image, [match.student for match in term.matches])
    with torch.no_grad():
        theirs = outputs_of(teacher, image, [match.teacher for match in term.matches])
    return observation(student=mine.logits, teacher=theirs.logits, student_maps=mine.maps, teacher_maps=theirs.maps)


class TestContext:
    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    def test_equals_the_formula(self, size: int) -> None:
        student, teacher = draws(3, 2, size, size), draws(3, 2, size, size, seed=1)
        found = context_loss(student, teacher)
        for number in range(3):
            assert float(found[number]) == pytest.approx(context_by_loops(student[number], teacher[number]), rel=1e-9)

    def test_is_the_plain_error_of_maps_that_differ_by_a_constant(self) -> None:
        """All levels see the same, and the weights sum to one."""
        teacher = draws(2, 3, 8, 8)
        torch.testing.assert_close(context_loss(teacher + 0.5, teacher), torch.full((2,), 0.25, dtype=torch.float64))

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_finite(self, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](4, 3, 8, 8)
        teacher = draws(len(student), 3, 8, 8, dtype=torch.float32)

        def loss(mine: Tensor) -> Tensor:
            return context_loss(mine, teacher)

        assert finite_gradients(loss, student, dtype)


class TestFusion:
    def test_equals_the_formula(self) -> None:
        torch.manual_seed(0)
        fusion = Fusion(3, 4, (1, 5, 4, 4), fuse=True).double()
        for _ in range(3):
            fusion(draws(8, 3, 4, 4), draws(8, 4, 2, 2, seed=2))
        fusion.eval().requires_grad_(requires_grad=False)
        maps, deeper = draws(2, 3, 4, 4, seed=3), draws(2, 4, 2, 2, seed=4)
        found, _ = fusion(maps, deeper)
        for number in range(2):
            expected = fusion_by_loops(fusion, maps[number], deeper[number])
            torch.testing.assert_close(found[number], expected)

    def test_reaches_every_level_from_the_shallowest(self) -> None:
        """What the shallowest level gives depends on all deeper ones; what the deepest gives, on none but itself."""
        channels, sizes = (2, 3, 4), (8, 4, 2)
        fusions = [
            Fusion(count, 4, (1, 5, size, size), fuse=level < 2)
            for level, (count, size) in enumerate(zip(channels, sizes, strict=True))
        ]
        maps = [
            draws(3, count, size, size, seed=count, dtype=torch.float32).requires_grad_()
            for count, size in zip(channels, sizes, strict=True)
        ]
        found = review(fusions, maps)
        for level in range(3):
            gradients = torch.autograd.grad(found[level].square().sum(), maps, retain_graph=True, allow_unused=True)
            assert [gradient is not None for gradient in gradients] == [below >= level for below in range(3)]


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], list[str]]] = {
    "another width": (
        Plain,
        lambda: Plain(8),
        [*(f"stage{number}.relu:input → stage{number}.relu:input" for number in (1, 2, 3)), "head:input → head:input"],
    ),
    "activations that are functions": (
        Plain,
        lambda: Plain(8, relu="function"),
        [*(f"stage{number}.relu:input → stage{number}" for number in (1, 2, 3)), "head:input → head:input"],
    ),
    "fewer levels": (
        PreActivation,
        Plain,
        ["stage2.relu:input → stage2.relu:input", "stage2 → stage3.relu:input", "head:input → head:input"],
    ),
    "a transformer": (
        Plain,
        lambda: Encoder(depth=3, width=12, class_token=True),
        [*(f"stage{number}.relu:input → blocks.{number - 1}" for number in (1, 2, 3)), "head:input → head:input"],
    ),
    "for a transformer": (
        lambda: Encoder(depth=2),
        Plain,
        ["blocks.0 → stage1.relu:input", "blocks.1 → stage3.relu:input", "head:input → head:input"],
    ),
}


class TestTerm:
    @pytest.mark.parametrize("name", PAIRS)
    def test_bridges(self, name: str, new_context: NewContext) -> None:
        make_student, make_teacher, taps = PAIRS[name]
        student, teacher = make_student(), make_teacher().eval()
        term = KnowledgeReview().term(pair_of(student, teacher, new_context()))
        assert [str(match) for match in term.matches] == taps
        loss = term(seen_of(student, teacher, term))
        assert isinstance(loss, Tensor)
        assert loss.shape == (6,)
        loss.mean().backward()
        assert all(parameter.grad is not None for parameter in term.parameters())
        first = next(student.parameters()).grad
        assert first is not None
        assert torch.isfinite(first).all()

    def test_is_the_sum_of_the_levels_losses(self, new_context: NewContext) -> None:
        student, teacher = Plain().eval(), Plain(8).eval()
        term = KnowledgeReview().term(pair_of(student, teacher, new_context())).eval()
        seen = seen_of(student, teacher, term)
        maps = [seen.student.maps[match.student] for match in term.matches]
        theirs = [seen.teacher.maps[match.teacher] for match in term.matches]
        maps[-1], theirs[-1] = maps[-1][:, :, None, None], theirs[-1][:, :, None, None]
        fusions = term.get_submodule("fusions")
        assert isinstance(fusions, nn.ModuleList)
        expected = sum(context_loss(*each) for each in zip(review(fusions, maps), theirs, strict=True))
        torch.testing.assert_close(term(seen), expected)

    def test_does_without_pooled_features_where_a_head_is_not_linear(self, new_context: NewContext) -> None:
        class TwoLevels(ConvHead):
            def __init__(self) -> None:
                super().__init__()
                self.stage1 = nn.Sequential(self.stage1, nn.Conv2d(4, 4, 3, 2, padding=1))

        term = KnowledgeReview().term(pair_of(Plain(), TwoLevels(), new_context()))
        assert not any(str(match).startswith("head:input") for match in term.matches)
        assert len(term.matches) == 2

    def test_refuses_a_single_level(self, new_context: NewContext) -> None:
        context = new_context()
        with pytest.raises(StageError, match=r"`review_kd`: the teacher does not end in a linear layer.*can serve"):
            KnowledgeReview().term(pair_of(Plain(), ConvHead(), context, method="review_kd"))
        assert len(KnowledgeReview().term(pair_of(FlatHead(), Plain(), context)).matches) == 2

    def test_survives_a_resume(self, new_context: NewContext) -> None:
        student, teacher, context = Plain().eval(), Plain(8).eval(), new_context()
        pair = pair_of(student, teacher, context)
        term, other = (KnowledgeReview().term(pair) for _ in range(2))
        seen = seen_of(student, teacher, term)
        term(seen)
        other.load_state_dict(term.state_dict())
        torch.testing.assert_close(other.eval()(seen), term.eval()(seen))
