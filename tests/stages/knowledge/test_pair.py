"""Facts about which layers of two networks correspond."""

from collections.abc import Callable

import pytest
import torch
from nets import ConvHead, Encoder, FlatHead, Hybrid, Plain, PreActivation, pair_of
from observations import observation
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.taps import outputs_of
from potstill.stages.knowledge.feature.hint import Hint
from potstill.stages.knowledge.pair import LayerPair, Match, spread
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def paths(matches: list[Match]) -> list[str]:
    return [str(match) for match in matches]


class TestAuto:
    def test_matches_stages_from_the_deepest(self, new_context: NewContext) -> None:
        matches = pair_of(PreActivation(), Plain(), new_context()).matches("auto")
        assert paths(matches) == ["stage1 → stage2", "stage2 → stage3"]
        assert matches[0].student_shape == (2, 4, 16, 16)
        assert matches[0].teacher_shape == (2, 8, 8, 8)

    def test_spreads_blocks_evenly(self, new_context: NewContext) -> None:
        matches = pair_of(Encoder(depth=2), Encoder(depth=6, width=12), new_context()).matches("auto")
        assert paths(matches) == ["blocks.0 → blocks.2", "blocks.1 → blocks.5"]

    def test_spreads_blocks_over_stages(self, new_context: NewContext) -> None:
        context = new_context()
        assert paths(pair_of(Plain(), Encoder(depth=6), context).matches("auto")) == [
            "stage1 → blocks.1",
            "stage2 → blocks.3",
            "stage3 → blocks.5",
        ]
        assert paths(pair_of(Encoder(depth=2), Plain(), context).matches("auto")) == [
            "blocks.0 → stage1",
            "blocks.1 → stage3",
        ]

    def test_takes_the_stages_of_a_network_with_blocks_between_convolutions(self, new_context: NewContext) -> None:
        matches = pair_of(Plain(), Hybrid(), new_context()).matches("auto")
        assert paths(matches) == ["stage2 → stage1", "stage3 → stage2"]

    def test_taps_before_activations_where_a_method_asks_for_it(self, new_context: NewContext) -> None:
        matches = pair_of(Plain(relu="inplace"), Plain(), new_context()).matches("auto", before_activation=True)
        assert paths(matches) == [f"stage{number}.relu:input → stage{number}.relu:input" for number in (1, 2, 3)]

    def test_refuses_activations_that_are_functions(self, new_context: NewContext) -> None:
        pair = pair_of(Plain(), Plain(relu="function"), new_context())
        with pytest.raises(StageError, match=r"`hint`: the teacher gives no values below zero at `stage1`"):
            pair.matches("auto", before_activation=True)
        assert paths(pair.matches("auto", before_activation="where possible")) == [
            f"stage{number}.relu:input → stage{number}" for number in (1, 2, 3)
        ]


class TestNamed:
    def test_a_pattern_serves_both(self, new_context: NewContext) -> None:
        assert paths(pair_of(Plain(), Plain(8), new_context()).matches("stage[12]")) == [
            "stage1 → stage1",
            "stage2 → stage2",
        ]

    def test_a_pattern_for_each_fits_as_many_layers(self, new_context: NewContext) -> None:
        pair = pair_of(Plain(), Encoder(depth=3), new_context())
        assert paths(pair.matches(LayerPair(student="stage?", teacher="blocks.*"))) == [
            "stage1 → blocks.0",
            "stage2 → blocks.1",
            "stage3 → blocks.2",
        ]
        with pytest.raises(StageError, match=r"`stage\[12\]` fits 2 layers .*`blocks.\*` 3 .*must be as many"):
            pair.matches(LayerPair(student="stage[12]", teacher="blocks.*"))

    def test_a_list_gives_pairs(self, new_context: NewContext) -> None:
        pair = pair_of(Plain(), Encoder(), new_context())
        named = (LayerPair(student="stage3", teacher="patches"), LayerPair(student="head:input", teacher="head:input"))
        matches = pair.matches(named)
        assert paths(matches) == ["stage3 → patches", "head:input → head:input"]
        assert [match.teacher_shape for match in matches] == [(2, 8, 4, 4), (2, 8)]

    def test_a_wrong_name_is_answered_with_the_nearest(self, new_context: NewContext) -> None:
        pair = pair_of(Plain(), Encoder(), new_context())
        with pytest.raises(StageError, match=r"the teacher has no layer `block.1`; did you mean `blocks.1`\?"):
            pair.matches((LayerPair(student="stage1", teacher="block.1"),))

    def test_what_a_method_does_not_take_is_refused(self, new_context: NewContext) -> None:
        pair = pair_of(Plain(), Encoder(class_token=True), new_context())
        named = (LayerPair(student="stage1", teacher="blocks.0"),)
        with pytest.raises(StageError, match=r"takes maps \(B, C, H, W\), but .*`blocks.0` .* \(2, 17, 8\)"):
            pair.matches(named, axes=(4,))
        assert len(pair.matches(named, grids=True)) == 1


class TestRefusals:
    def test_name_methods_that_can_serve(self, new_context: NewContext) -> None:
        pair = pair_of(FlatHead(), ConvHead(), new_context(), method="at")
        with pytest.raises(
            StageError, match=r"`at`: the teacher does not .* Methods that can serve this pair: .*`kd`.*`hint`"
        ):
            pair.heads()

    def test_do_not_name_methods_that_cannot(self, new_context: NewContext) -> None:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
        with pytest.raises(StageError, match="Methods that can serve") as refused:
            pair_of(flat, Plain(), new_context(), method="at").matches("auto")
        assert "`kd`" in str(refused.value)
        assert "`hint`" not in str(refused.value)

    def test_say_how_many_layers_are_missing(self, new_context: NewContext) -> None:
        pair = pair_of(FlatHead(), Plain(), new_context())
        with pytest.raises(StageError, match=r"finds 1 corresponding layers .* needs 2 or more; name the layers"):
            pair.matches("auto", at_least=2)

    def test_tell_of_attentions_that_no_module_shows(self, new_context: NewContext) -> None:
        context = new_context()
        with pytest.raises(StageError, match=r"the student has no module that gives attention probabilities"):
            pair_of(Plain(), Encoder(), context).attentions()
        with pytest.raises(StageError, match=r"the teacher gives the probabilities .* no module of its own"):
            pair_of(Encoder(), Encoder(softmax="dropout"), context).attentions(scores=True)
        with pytest.raises(StageError, match=r"the teacher has no layer called like .*`value`.*`qkv`"):
            pair_of(Encoder(), Plain(), context).values()


class TestHeads:
    def test_stand_on_features_and_maps(self, new_context: NewContext, new_artifact: NewArtifact) -> None:
        pair = pair_of(new_artifact().model, Plain(), new_context())
        assert pair.heads() == ("linear", "head")
        assert str(pair.features()) == "linear:input → head:input"
        assert str(pair.last_maps()) == "layer3 → stage3"
        assert pair.last_maps().student_shape == (2, 32, 4, 4)

    def test_may_stand_on_tokens(self, new_context: NewContext) -> None:
        pair = pair_of(Plain(), Encoder(), new_context())
        assert str(pair.last_maps(grids=True)) == "stage3 → norm"
        with pytest.raises(StageError, match="the teacher does not end in maps"):
            pair.last_maps()


class TestAttentions:
    def test_are_spread_as_blocks_are(self, new_context: NewContext) -> None:
        pair = pair_of(Encoder(depth=2), Encoder(depth=4, softmax="dropout"), new_context())
        assert paths(pair.attentions()) == [
            "blocks.0.attention.softmax → blocks.1.attention.dropout:input",
            "blocks.1.attention.softmax → blocks.3.attention.dropout:input",
        ]

    def test_have_scores_and_values(self, new_context: NewContext) -> None:
        pair = pair_of(Encoder(depth=1), Encoder(depth=3, fused=True), new_context())
        assert paths(pair.attentions(scores=True)) == [
            "blocks.0.attention.softmax:input → blocks.2.attention.softmax:input"
        ]
        assert paths(pair.values()) == ["blocks.0.attention.value → blocks.2.attention.qkv"]


class TestSpread:
    def test_ends_at_the_last_of_both_and_never_repeats(self) -> None:
        for few in range(1, 7):
            for many in range(few, 20):
                pairs = spread([str(at) for at in range(few)], [str(at) for at in range(many)])
                assert [int(mine) for mine, _ in pairs] == list(range(few))
                theirs = [int(each) for _, each in pairs]
                assert theirs[-1] == many - 1
                assert len(set(theirs)) == few
                steps = [after - before for before, after in zip([-1, *theirs], theirs, strict=False)]
                assert max(steps) - min(steps) <= 1

    def test_maps_bert_base_as_tinybert_does(self) -> None:
        """Four layers learn from every third of twelve."""
        pairs = spread(list("1234"), [str(at) for at in range(1, 13)])
        assert [theirs for _, theirs in pairs] == ["3", "6", "9", "12"]


PAIRS = {
    "convolutions from a transformer": (Plain, lambda: Encoder(depth=3, width=12, class_token=True)),
    "a transformer from convolutions": (lambda: Encoder(depth=2), Plain),
    "a transformer of other patches": (Encoder, lambda: Encoder(patch=8, depth=3, class_token=True)),
    "a pre-activation network": (PreActivation, lambda: Plain(8)),
    "blocks between convolutions": (Hybrid, Encoder),
}


@pytest.mark.parametrize("name", PAIRS)
def test_hints_bridge(name: str, new_context: NewContext) -> None:
    student, teacher = (make() for make in PAIRS[name])
    term = Hint().term(pair_of(student, teacher, new_context()))
    assert len(term.matches) >= 2
    image = {"image": torch.randn(6, 1, 16, 16)}
    mine = outputs_of(student, image, [match.student for match in term.matches])
    with torch.no_grad():
        theirs = outputs_of(teacher, image, [match.teacher for match in term.matches])
    seen = observation(student=mine.logits, teacher=theirs.logits, student_maps=mine.maps, teacher_maps=theirs.maps)
    loss = term(seen)
    assert isinstance(loss, torch.Tensor)
    assert loss.shape == (6,)
    loss.mean().backward()
    assert all(parameter.grad is not None for parameter in term.parameters())
    first = next(student.parameters()).grad
    assert first is not None
    assert torch.isfinite(first).all()
