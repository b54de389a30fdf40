"""Facts about softmax regression representation learning."""

from collections.abc import Callable

import pytest
import torch
from nets import ConvHead, Encoder, FlatHead, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.errors import StageError
from potstill.stages.knowledge.feature.srrl import SoftmaxRegression
from potstill.stages.knowledge.method import Term
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def made(student: nn.Module, teacher: nn.Module, context: Context, method: SoftmaxRegression | None = None) -> Term:
    return (method or SoftmaxRegression()).term(pair_of(student, teacher, context, "srrl"))


def loss_of(term: Term, teacher: nn.Module, mine: Tensor, theirs: Tensor, logits: Tensor) -> Tensor:
    """As seen with the teacher frozen, its features and its logits."""
    (match,) = term.matches
    seen = observation(
        student=torch.zeros_like(logits),
        teacher=logits,
        student_maps={match.student: mine},
        teacher_maps={match.teacher: theirs},
        teacher_model=teacher.eval().requires_grad_(requires_grad=False),
    )
    found = term(seen)
    assert isinstance(found, Tensor)
    return found


def by_loops(features: list[float], wanted: list[float], head: nn.Linear, logits: list[float]) -> tuple[float, float]:
    """Of one sample: the mean squared errors of features and of logits."""
    rows, biases = head.weight.tolist(), head.bias.tolist()
    made = [sum(w * x for w, x in zip(row, features, strict=True)) + b for row, b in zip(rows, biases, strict=True)]
    return (
        sum((a - b) ** 2 for a, b in zip(features, wanted, strict=True)) / len(wanted),
        sum((a - b) ** 2 for a, b in zip(made, logits, strict=True)) / len(logits),
    )


def test_equals_its_formula_by_loops(new_context: NewContext) -> None:
    teacher = Plain(3).double()
    method = SoftmaxRegression(features=2, logits=0.5)
    term = made(Plain(2), Plain(3), new_context(), method).double().eval()  # batch norms are then the identity
    mine, theirs, logits = draws(2, 8, 3, 2), draws(2, 12, seed=1), draws(2, 4, seed=2)
    weight = next(term.parameters()).detach().squeeze().tolist()
    expected: list[float] = []
    for sample in range(2):
        places = mine[sample].flatten(1).T.tolist()
        projected = [
            [max(sum(w * x for w, x in zip(row, place, strict=True)) / (1 + 1e-5) ** 0.5, 0) for row in weight]
            for place in places
        ]
        features = [sum(place[channel] for place in projected) / len(places) for channel in range(12)]
        of_features, of_logits = by_loops(features, theirs[sample].tolist(), teacher.head, logits[sample].tolist())
        expected.append(2 * of_features + 0.5 * of_logits)
    assert loss_of(term, teacher, mine, theirs, logits).tolist() == pytest.approx(expected, rel=1e-9)


def test_is_zero_for_features_that_equal_the_teachers(new_context: NewContext) -> None:
    teacher = Plain()
    term = made(Plain(), teacher, new_context())
    (match,) = term.matches
    assert (match.student, match.teacher) == ("stage3", "head:input")
    term.get_submodule("projector")[1].eval()
    with torch.no_grad():
        term.get_submodule("projector")[0].weight.copy_(torch.eye(16)[:, :, None, None])
    maps = draws(3, 16, 4, 4, dtype=torch.float32).relu()
    features = maps.mean((2, 3))
    with torch.no_grad():
        logits = teacher.head(features)
    assert loss_of(term, teacher, maps, features, logits).tolist() == pytest.approx([0, 0, 0], abs=1e-8)


def test_reaches_the_student_through_a_head_that_stays_frozen(new_context: NewContext) -> None:
    teacher = Plain(6)
    term = made(Plain(), teacher, new_context(), SoftmaxRegression(features=0))
    before = teacher.head.weight.clone()
    mine = draws(3, 16, 4, 4, dtype=torch.float32).requires_grad_()
    theirs, logits = draws(3, 24, dtype=torch.float32), draws(3, 4, dtype=torch.float32)
    loss_of(term, teacher, mine, theirs, logits).mean().backward()
    assert mine.grad is not None
    assert mine.grad.any()
    assert all(each.grad is not None for each in term.parameters())
    assert teacher.head.weight.grad is None
    assert torch.equal(teacher.head.weight, before)
    assert not any("head" in name for name in term.state_dict())


def test_negative_features_are_matched_where_the_teacher_has_them(new_context: NewContext) -> None:
    teacher = Encoder(width=12)  # its head stands on a layer norm
    term = made(Encoder(), teacher, new_context(), SoftmaxRegression(logits=0))
    (match,) = term.matches
    assert (match.student, match.teacher) == ("norm", "head:input")
    tokens, wanted = draws(2, 16, 8, dtype=torch.float32), torch.full((2, 12), -1.0)
    nn.init.constant_(term.get_submodule("projector")[1].bias, -1)  # the mean of what the batch norm gives
    assert loss_of(term, teacher, tokens, wanted, torch.zeros(2, 4)).max() < 0.3


def test_takes_pooled_features_where_a_head_stands_on_something_else(new_context: NewContext) -> None:
    teacher = Plain(6)
    for student, width in ((FlatHead(), 64), (Encoder(class_token=True), 8)):
        term = made(student, teacher, new_context())
        (match,) = term.matches
        assert (match.student, match.teacher) == ("head:input", "head:input")
        loss = loss_of(term, teacher, draws(2, width, dtype=torch.float32), torch.zeros(2, 24), torch.zeros(2, 4))
        assert loss.shape == (2,)


def test_is_refused_without_a_linear_head(new_context: NewContext) -> None:
    with pytest.raises(StageError, match=r"`srrl`: the teacher does not end in a linear layer.*can serve.*`at`"):
        made(Plain(), ConvHead(), new_context())


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_has_finite_gradients(case: str, dtype: torch.dtype, new_context: NewContext) -> None:
    teacher = Plain(6)
    term = made(Plain(), teacher, new_context())
    student = HARD_CASES[case](3, 16, 4, 4)
    theirs, logits = (draws(len(student), size, dtype=torch.float32) for size in (24, 4))
    assert finite_gradients(lambda mine: loss_of(term, teacher, mine, theirs, logits), student, dtype)
