"""Facts about trainings that draw channels to zero before they are cut."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Batch, Dataset
from potstill.pipeline.errors import RecipeError, StageError
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, Objective
from potstill.stages.prune import Budget, Prune
from potstill.stages.pruning.blocks import Block, blocks
from potstill.stages.pruning.importance import scored
from potstill.stages.pruning.regularization import Regularization, Regularized, norm_share, squared_norms
from potstill.stages.pruning.units import channel_groups
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


class Nothing(Objective):
    """No term at all."""

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        return {}


def trainable(artifact: Artifact) -> nn.Module:
    return deepcopy(artifact.model).eval().requires_grad_(requires_grad=True)


def ordered_blocks(model: nn.Module, context: Context) -> list[Block]:
    grouping = channel_groups(model, context.data.example(), set())
    return blocks(scored(model, grouping, "l2", context)[0], 4, "l2")


def sparsity(model: nn.Module, ordered: list[Block], settings: Mapping[str, Any], step: int, cut: int) -> Tensor:
    term = Regularized(Nothing(), Regularization(epochs=1, **settings), ordered, cut)
    batch = Batch({}, torch.zeros(1), torch.zeros(1))
    return term.terms(model, batch, Moment(step, 10, 0))["sparsity"]


def test_a_group_is_its_channels_in_all_layers(new_artifact: NewArtifact, new_context: NewContext) -> None:
    model, context = trainable(new_artifact()), new_context()
    (group,) = (
        each
        for each in channel_groups(model, context.data.example(), set()).groups
        if each.layers[0] == "layer1.0.conv1"
    )
    block: Any = model.get_submodule("layer1.0")
    own = (
        block.conv1.weight.square().sum((1, 2, 3))
        + block.bn1.weight.square()
        + block.conv2.weight.square().sum((0, 2, 3))
    )
    torch.testing.assert_close(squared_norms(model, group), own)


def test_the_least_important_channel_is_drawn_hardest(new_artifact: NewArtifact, new_context: NewContext) -> None:
    model, context = trainable(new_artifact()), new_context()
    ordered = ordered_blocks(model, context)
    torch.autograd.backward(sparsity(model, ordered, {"strength": 1.0}, 0, 0))
    block: Any = model.get_submodule("layer1.0")
    (group,) = {id(each.group): each.group for each in ordered if each.group.layers[0] == "layer1.0.conv1"}.values()
    # d(strength · weight · |w|² / 2) / dw = strength · weight · w
    pull = block.bn1.weight.grad / block.bn1.weight.detach()
    squares = squared_norms(model, group).detach()
    assert pull[squares.argmin()] == pytest.approx(16, rel=1e-4)
    assert pull[squares.argmax()] == pytest.approx(1, rel=1e-4)


def test_growing_draws_only_what_the_cut_would_take_and_ever_harder(
    new_artifact: NewArtifact, new_context: NewContext
) -> None:
    model, context = trainable(new_artifact()), new_context()
    ordered = ordered_blocks(model, context)
    settings = {"method": "growing", "strength": 0.5}
    early, late = (sparsity(model, ordered, settings, step, 2) for step in (0, 9))
    doomed = sum(squared_norms(model, block.group)[list(block.units)].sum().item() for block in ordered[:2])
    assert early.item() == pytest.approx(16 * 0.05 * doomed / 2, rel=1e-5)
    assert late.item() == pytest.approx(16 * 0.5 * doomed / 2, rel=1e-5)
    assert sparsity(model, ordered, settings, 9, 0).item() == 0


@pytest.mark.parametrize("method", ["group_norm", "growing"])
def test_channels_that_are_cut_then_matter_less(
    method: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    artifact = new_artifact(width=16)
    context = new_context(Teacher(artifact))
    settings = Regularization.model_validate({"method": method, "strength": 0.1, "epochs": 8, "learning_rate": 0.05})
    stage = Prune(keep=Budget(channels=0.7), round_to=4, regularize=settings, recover=Recovery(epochs=0))
    stage.run(artifact, context)
    fact = context.journal.facts["regularized"]
    assert isinstance(fact, dict)
    assert float(str(fact["norm share after"])) < 0.9 * float(str(fact["norm share of the cut before"]))
    assert "sparsity" in context.journal.curve[0].terms


def test_the_share_of_all_blocks_and_what_they_leave_is_the_whole(
    new_artifact: NewArtifact, new_context: NewContext, data: Dataset
) -> None:
    model = trainable(new_artifact())
    ordered = ordered_blocks(model, new_context())
    assert (
        0
        < norm_share(model, ordered[:1])
        < norm_share(model, [each for each in ordered if each.group is ordered[0].group])
        < 1
    )


@pytest.mark.parametrize(
    ("keep", "round_to", "problem"),
    [
        ({"macs": 0.01}, 4, r"cannot get down to 1\.0% of the macs"),
        ({"latency": 0.5}, 512, "no layer that can be pruned has more than `round_to: 512` channels"),
    ],
    ids=["too small a budget", "nothing to cut"],
)
def test_a_cut_that_cannot_be_made_is_refused_before_the_training(
    keep: dict[str, float], round_to: int, problem: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    artifact = new_artifact()
    context = new_context(Teacher(artifact))
    stage = Prune(keep=Budget(**keep), round_to=round_to, regularize=Regularization(epochs=1))
    with pytest.raises(StageError, match=problem):
        stage.run(artifact, context)
    assert not context.journal.curve


def test_is_refused_behind_quantization(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(
        "name: a\ndata: {source: digits}\nteacher: {model: {name: resnet, depth: 8}}\n"
        "stages:\n  - {stage: train, epochs: 1}\n  - stage: quantize\n"
        "  - {stage: prune, keep: {macs: 0.5}, regularize: {epochs: 2}}\n"
        "targets: [{runtime: onnxruntime, precision: [int8]}]\n"
    )
    with pytest.raises(RecipeError, match=r"stages\[2\]: `regularize` trains a float model; put `prune` before"):
        load_recipe(recipe)
