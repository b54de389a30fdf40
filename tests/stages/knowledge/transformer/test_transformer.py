"""Facts about learning from a transformer's tokens and attentions."""

import math
from collections.abc import Callable

import pytest
import torch
from nets import Encoder, Plain, pair_of
from observations import HARD_CASES, draws, finite_gradients, observation
from torch import Tensor, nn

from potstill.pipeline.errors import StageError
from potstill.pipeline.taps import outputs_of
from potstill.stages.knowledge.feature.hint import squared_error
from potstill.stages.knowledge.method import Comparison, Method, Observation, Term
from potstill.stages.knowledge.pair import LayerPair, Match
from potstill.stages.knowledge.transformer.attention import AttentionMatrices, alike_heads, divergence
from potstill.stages.knowledge.transformer.hidden_states import HiddenStates
from potstill.stages.knowledge.transformer.value_relation import ValueRelations, relation_divergence
from potstill.stages.stage import Context

NewContext = Callable[..., Context]


def seen_of(student: nn.Module, teacher: nn.Module, term: Term, count: int = 4) -> Observation:
    image = {"image": draws(count, 1, 16, 16, dtype=torch.float32)}
    mine = outputs_of(student, image, [match.student for match in term.matches])
    with torch.no_grad():
        theirs = outputs_of(teacher, image, [match.teacher for match in term.matches])
    return observation(student=mine.logits, teacher=theirs.logits, student_maps=mine.maps, teacher_maps=theirs.maps)


def loss_of(method: Method, student: nn.Module, teacher: nn.Module, context: Context) -> Tensor:
    term = method.term(pair_of(student, teacher, context))
    loss = term(seen_of(student, teacher, term))
    assert isinstance(loss, Tensor)
    return loss


def softmax_of(scores: list[float]) -> list[float]:
    top = max(scores)
    parts = [math.exp(score - top) for score in scores]
    return [part / sum(parts) for part in parts]


def divergence_of(student: list[float], teacher: list[float]) -> float:
    return sum(t * (math.log(t) - math.log(s)) for s, t in zip(student, teacher, strict=True))


def relations_by_loops(student: Tensor, teacher: Tensor, heads: int) -> float:
    """MiniLM's value relations for one sample, values (N, D)."""
    total = 0.0
    for head in range(heads):
        rows: list[list[list[float]]] = []
        for values in (student, teacher):
            size = values.shape[1] // heads
            mine = [[float(value) for value in token[head * size : (head + 1) * size]] for token in values]
            rows.append(
                [
                    softmax_of(
                        [sum(a * b for a, b in zip(one, other, strict=True)) / math.sqrt(size) for other in mine]
                    )
                    for one in mine
                ]
            )
        total += sum(divergence_of(s, t) for s, t in zip(*rows, strict=True))
    return total / (heads * len(student))


class TestHiddenStates:
    def test_share_one_map_among_blocks(self, new_context: NewContext) -> None:
        term = HiddenStates().term(pair_of(Encoder(depth=2), Encoder(depth=6, width=12), new_context()))
        assert [str(match) for match in term.matches] == ["blocks.0 → blocks.2", "blocks.1 → blocks.5"]
        assert [tuple(parameter.shape) for parameter in term.parameters()] == [(12, 8)]

    def test_equal_the_formula(self, new_context: NewContext) -> None:
        student, teacher = Encoder(depth=2).eval(), Encoder(depth=2, width=12).eval()
        term = HiddenStates(embeddings=True).term(pair_of(student, teacher, new_context()))
        term.requires_grad_(requires_grad=False)
        seen = seen_of(student, teacher, term, count=2)
        matrices = dict(term.named_parameters())
        found = term(seen)
        assert isinstance(found, Tensor)
        for number in range(2):
            total = 0.0
            for tap, name in (
                ("blocks.0:input", "projectors.embeddings.weight"),
                ("blocks.0", "projectors.8 to 12.weight"),
                ("blocks.1", "projectors.8 to 12.weight"),
            ):
                mine, theirs = seen.student.maps[tap][number].detach(), seen.teacher.maps[tap][number]
                squares = 0.0
                for token in range(16):
                    for feature in range(12):
                        row = matrices[name][feature]
                        projected = sum(float(row[k] * mine[token, k]) for k in range(8))
                        squares += (projected - float(theirs[token, feature])) ** 2
                total += squares / (16 * 12)
            assert float(found[number].detach()) == pytest.approx(total, rel=1e-4)

    def test_embeddings_are_what_goes_into_the_first_block(self, new_context: NewContext) -> None:
        term = HiddenStates(embeddings=True).term(pair_of(Encoder(), Encoder(width=12), new_context()))
        assert str(term.matches[0]) == "blocks.0:input → blocks.0:input"

    @pytest.mark.parametrize(
        "teacher", [lambda: Encoder(patch=8), lambda: Encoder(class_token=True), lambda: Encoder(patch=2, width=4)]
    )
    def test_bridge_other_numbers_of_tokens(self, teacher: Callable[[], nn.Module], new_context: NewContext) -> None:
        assert torch.isfinite(loss_of(HiddenStates(), Encoder(), teacher(), new_context())).all()

    def test_refuse_networks_without_tokens(self, new_context: NewContext) -> None:
        context = new_context()
        with pytest.raises(
            StageError, match=r"`hidden_states`: .*tokens \(B, N, D\).*can serve this pair: .*`hint`"
        ) as refused:
            HiddenStates().term(pair_of(Plain(), Encoder(), context, method="hidden_states"))
        assert "`attention`" not in str(refused.value)
        named = LayerPair(student="patches:input", teacher="patches:input")
        with pytest.raises(StageError, match="takes tokens"):
            HiddenStates(layers=named).term(pair_of(Encoder(), Encoder(), context))


class TestAttention:
    def test_scores_are_compared_in_every_block(self, new_context: NewContext) -> None:
        student, teacher = Encoder(depth=2).eval(), Encoder(depth=4, width=12).eval()
        term = AttentionMatrices().term(pair_of(student, teacher, new_context()))
        assert [str(match) for match in term.matches] == [
            "blocks.0.attention.softmax:input → blocks.1.attention.softmax:input",
            "blocks.1.attention.softmax:input → blocks.3.attention.softmax:input",
        ]
        seen = seen_of(student, teacher, term, count=2)
        found = term(seen)
        assert isinstance(found, Tensor)
        for number in range(2):
            total = 0.0
            for match in term.matches:
                mine = seen.student.maps[match.student][number].tolist()
                theirs = seen.teacher.maps[match.teacher][number].tolist()
                for head in range(2):
                    squares = [(mine[head][i][j] - theirs[head][i][j]) ** 2 for i in range(16) for j in range(16)]
                    total += sum(squares) / len(squares) / 2
            assert float(found[number].detach()) == pytest.approx(total, rel=1e-5)

    def test_probabilities_are_compared_in_the_last_block(self, new_context: NewContext) -> None:
        student, teacher = Encoder(depth=2).eval(), Encoder(depth=3, softmax="dropout").eval()
        term = AttentionMatrices(distance="kl").term(pair_of(student, teacher, new_context()))
        assert [str(match) for match in term.matches] == [
            "blocks.1.attention.softmax → blocks.2.attention.dropout:input"
        ]
        seen = seen_of(student, teacher, term, count=2)
        ((mine, theirs),) = term.maps(seen)
        found = term(seen)
        assert isinstance(found, Tensor)
        for number in range(2):
            expected = sum(
                divergence_of(mine[number, head, token].tolist(), theirs[number, head, token].tolist())
                for head in range(2)
                for token in range(16)
            )
            assert float(found[number].detach()) == pytest.approx(expected / 32, rel=1e-4, abs=1e-6)

    def test_of_other_heads_are_averaged(self, new_context: NewContext) -> None:
        student, teacher = draws(2, 2, 5, 5), draws(2, 3, 5, 5, seed=1)
        mine, theirs = alike_heads(student, teacher)
        for row in range(5):
            for column in range(5):
                assert float(mine[1, 0, row, column]) == pytest.approx(float(sum(student[1, :, row, column])) / 2)
                assert float(theirs[1, 0, row, column]) == pytest.approx(float(sum(teacher[1, :, row, column])) / 3)
        wide = Encoder(width=12, heads=3)
        for method in (AttentionMatrices(), AttentionMatrices(distance="kl")):
            assert torch.isfinite(loss_of(method, Encoder(), wide, new_context())).all()

    def test_of_as_many_heads_are_not(self) -> None:
        student, teacher = draws(2, 3, 5, 5), draws(2, 3, 5, 5, seed=1)
        assert alike_heads(student, teacher) == (student, teacher)

    @pytest.mark.parametrize("distance", ["mse", "kl"])
    def test_among_other_tokens_are_refused(self, distance: str, new_context: NewContext) -> None:
        method = AttentionMatrices.model_validate({"distance": distance})
        pair = pair_of(Encoder(), Encoder(class_token=True), new_context(), method="attention")
        with pytest.raises(StageError, match=r"there are 16 at .* student and 17 at .*can serve this pair: .*`hint`"):
            method.term(pair)

    def test_that_no_module_shows_are_refused(self, new_context: NewContext) -> None:
        context = new_context()
        with pytest.raises(StageError, match="the teacher has no module that gives attention probabilities"):
            AttentionMatrices().term(pair_of(Encoder(), Encoder(softmax="hidden"), context))
        with pytest.raises(StageError, match="softmax that is no module of its own"):
            AttentionMatrices().term(pair_of(Encoder(), Encoder(softmax="dropout"), context))


class TestValueRelations:
    @pytest.mark.parametrize(("seed", "heads"), [(0, 1), (1, 2), (2, 4)])
    def test_equal_the_formula(self, seed: int, heads: int) -> None:
        student, teacher = draws(2, 5, 4, seed=seed), draws(2, 5, 12, seed=seed + 9)
        found = relation_divergence(student, teacher, heads)
        for number in range(2):
            expected = relations_by_loops(student[number], teacher[number], heads)
            assert float(found[number]) == pytest.approx(expected, rel=1e-9)

    def test_do_not_change_when_values_are_rotated(self) -> None:
        student, teacher = draws(2, 5, 4), draws(2, 5, 12, seed=1)
        turn, _ = torch.linalg.qr(draws(4, 4, seed=2))
        torch.testing.assert_close(
            relation_divergence(student @ turn, teacher, 1), relation_divergence(student, teacher, 1)
        )

    def test_read_the_last_third_of_fused_layers(self, new_context: NewContext) -> None:
        student, teacher = Encoder(width=12).eval(), Encoder(width=8, fused=True).eval()
        term = ValueRelations().term(pair_of(student, teacher, new_context()))
        assert [str(match) for match in term.matches] == ["blocks.1.attention.value → blocks.1.attention.qkv"]
        seen = seen_of(student, teacher, term)
        ((mine, theirs),) = term.maps(seen)
        torch.testing.assert_close(term(seen), relation_divergence(mine, theirs[..., 16:], 2))

    def test_take_named_layers(self, new_context: NewContext) -> None:
        method = ValueRelations(layers="blocks.*.attention.value", heads=4)
        term = method.term(pair_of(Encoder(), Encoder(), new_context()))
        assert len(term.matches) == 2

    def test_refuse_widths_that_do_not_divide(self, new_context: NewContext) -> None:
        pair = pair_of(Encoder(), Encoder(width=12, heads=3), new_context(), method="value_relation")
        with pytest.raises(StageError, match=r"8 wide .* 12 .*into 3 heads; give `heads` one of 1, 2, 4\."):
            ValueRelations().term(pair)
        assert ValueRelations(heads=2).term(pair)

    def test_refuse_what_they_cannot_find(self, new_context: NewContext) -> None:
        context = new_context()
        with pytest.raises(StageError, match="the student has no layer called like"):
            ValueRelations().term(pair_of(Plain(), Encoder(), context))
        with pytest.raises(StageError, match="give `heads` a number"):
            ValueRelations().term(pair_of(Encoder(), Encoder(softmax="hidden"), context))
        with pytest.raises(StageError, match=r"16 at .* and 4 at"):
            ValueRelations().term(pair_of(Encoder(), Encoder(patch=8), context))


METHODS = {
    "attention": AttentionMatrices(),
    "attention kl": AttentionMatrices(distance="kl"),
    "value relations": ValueRelations(),
}


@pytest.mark.parametrize("name", METHODS)
class TestAll:
    def test_are_zero_for_the_teacher_itself(self, name: str, new_context: NewContext) -> None:
        model = Encoder().eval()
        torch.testing.assert_close(
            loss_of(METHODS[name], model, model, new_context()), torch.zeros(4), atol=1e-6, rtol=0
        )

    def test_are_positive_for_another(self, name: str, new_context: NewContext) -> None:
        assert (loss_of(METHODS[name], Encoder().eval(), Encoder().eval(), new_context()) > 0).all()

    def test_reach_the_student(self, name: str, new_context: NewContext) -> None:
        student = Encoder().train()
        loss_of(METHODS[name], student, Encoder().eval(), new_context()).mean().backward()
        gradient = student.patches.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


def _scores(student: Tensor, teacher: Tensor) -> Tensor:
    return squared_error(student, teacher)


def _probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    return divergence(student.softmax(-1), teacher.softmax(-1))


def _raw_probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    """Such as a softmax in low precision gives: zeros, and rows that do not quite sum to one."""
    return divergence(student.abs(), teacher.softmax(-1))


def _relations(student: Tensor, teacher: Tensor) -> Tensor:
    return relation_divergence(student.flatten(1, 2), teacher.flatten(1, 2), 2)


@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [_scores, _probabilities, _raw_probabilities, _relations])
def test_losses_are_finite(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, case: str) -> None:
    student = HARD_CASES[case](4, 2, 6, 6)
    teacher = 5 * draws(len(student), 2, 6, 6, dtype=torch.float32)
    assert finite_gradients(lambda mine: loss(mine, teacher), student, dtype)


class TestPadding:
    """What lies behind the end of a text is neither a token nor attention."""

    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    def pairs(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        maps = {"block": draws(*shape, dtype=torch.float32)}
        seen = observation(
            student_maps=maps, teacher_maps={"layer": draws(*shape, seed=1)}, inputs={"attention_mask": self.mask}
        )
        ((mine, theirs),) = Comparison([Match("block", "layer", shape, shape)], squared_error).maps(seen)
        assert torch.equal(mine[1], maps["block"][1])
        return mine, theirs

    def test_of_hidden_states_is_zero_in_both_networks(self) -> None:
        for tensor in self.pairs((2, 5, 8)):
            assert (tensor[0, 3:] == 0).all()
            assert (tensor[0, :3] != 0).all()

    def test_of_attention_is_zero_as_query_and_as_key(self) -> None:
        for tensor in self.pairs((2, 4, 5, 5)):
            assert (tensor[0, :, 3:] == 0).all()
            assert (tensor[0, :, :, 3:] == 0).all()
            assert (tensor[0, :, :3, :3] != 0).all()

    def test_of_anything_else_stays(self) -> None:
        assert (self.pairs((2, 8))[0] != 0).all()
