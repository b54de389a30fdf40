"""Facts about criteria, scopes and cuts in steps."""

import json
from collections.abc import Callable
from operator import attrgetter
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import layer_sizes
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import StageError
from potstill.stages.prune import Budget, Prune
from potstill.stages.pruning import evidence
from potstill.stages.pruning.blocks import Block, blocks, by_rise, evenly, structure
from potstill.stages.pruning.groups import ChannelGroup, Member
from potstill.stages.pruning.importance import Criterion, Scored, channel_rows, scored
from potstill.stages.pruning.units import channel_groups
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context

NewContext = Callable[..., Context]
ZooArtifact = Callable[[str], Artifact]

UNTRAINED = Recovery(epochs=0)
LAYERS = [
    nn.Conv2d(8, 12, 3, padding=1),
    nn.Conv2d(8, 12, 3, padding=1, groups=4),
    nn.Conv2d(8, 8, 3, padding=1, groups=8),
    nn.ConvTranspose2d(8, 12, 2, stride=2),
    nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4),
]


def by_path(artifact: Artifact, criterion: Criterion, context: Context, data: Dataset) -> dict[str, tuple[float, ...]]:
    model = artifact.model.requires_grad_(requires_grad=True)
    found, _ = scored(model, channel_groups(model, data.example(), set()), criterion, context)
    return {layer: each.scores for each in found for layer in each.group.layers}


def relative(values: Tensor) -> Any:
    return pytest.approx((values / values.mean()).tolist(), rel=1e-4)


def gradients_of(model: nn.Module, weights: tuple[Tensor, ...], context: Context, samples: slice) -> tuple[Tensor, ...]:
    train = context.data.train
    batch = train.batch(torch.arange(len(train))[samples])
    return torch.autograd.grad(context.task.loss(model(*batch.inputs.values()), batch.target), weights)


class TestRows:
    @pytest.mark.parametrize("layer", LAYERS, ids=str)
    def test_of_a_written_channel_are_the_weights_it_is_made_of(self, layer: nn.Conv2d) -> None:
        for channel in range(layer.out_channels):
            layer.zero_grad()
            layer(torch.rand(1, 8, 5, 5) + 0.1)[0, channel].sum().backward()
            assert layer.weight.grad is not None
            used = channel_rows(layer, layer.weight.grad, written=True).ne(0).any(1)
            assert used.nonzero().flatten().tolist() == [channel]

    def test_of_an_embeddings_channel_are_what_it_holds_for_every_word(self) -> None:
        layer = nn.Embedding(5, 3)
        assert torch.equal(channel_rows(layer, layer.weight, written=True), layer.weight.T)

    @pytest.mark.parametrize("layer", LAYERS, ids=str)
    def test_of_a_read_channel_are_the_weights_that_it_meets(self, layer: nn.Conv2d) -> None:
        for channel in range(8):
            layer.zero_grad()
            alone = torch.zeros(1, 8, 5, 5)
            alone[0, channel] = 1
            layer(alone).sum().backward()
            assert layer.weight.grad is not None
            used = channel_rows(layer, layer.weight.grad, written=False).ne(0).any(1)
            assert used.nonzero().flatten().tolist() == [channel]


class TestCriteria:
    @pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2), ("lamp", 2)])
    def test_norms_are_over_every_layer_that_shares_the_channel(
        self, criterion: Criterion, power: int, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = zoo_artifact("flattened")
        conv, norm, linear = (artifact.model.get_submodule(path) for path in ("0.0", "0.1", "3"))
        expected = [
            sum(
                float(tensor.detach().abs().pow(power).sum())
                # After the flattening, 4×4 features of the linear layer are one channel.
                for tensor in (conv.weight[c], norm.weight[c], linear.weight[:, 16 * c : 16 * (c + 1)])
            )
            for c in range(16)
        ]
        assert by_path(artifact, criterion, new_context(), data)["0.0"] == relative(torch.tensor(expected))

    def test_bn_scale_is_the_norms_weight_alone(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = zoo_artifact("flattened")
        norm = artifact.model.get_submodule("0.1")
        found = by_path(artifact, "bn_scale", new_context(), data)
        assert found["0.0"] == relative(norm.weight.abs())
        assert "3" not in found  # the hidden linear layer has no norm

    def test_bn_scale_leaves_layers_without_a_norm_alone_and_says_so(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        Prune(keep=Budget(macs=0.8), criterion="bn_scale", recover=UNTRAINED).run(zoo_artifact("flattened"), context)
        assert "3 keeps its channels: `criterion: bn_scale` says nothing" in str(context.journal.facts["left alone"])

    def test_fpgm_is_the_distance_to_all_other_filters(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = zoo_artifact("flattened")
        filters = artifact.model.get_submodule("0.0").weight
        far = torch.tensor([sum(float((mine - other).detach().norm()) for other in filters) for mine in filters])
        assert by_path(artifact, "fpgm", new_context(), data)["0.0"] == relative(far)

    def test_taylor_is_the_product_of_weight_and_gradient(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact, context = zoo_artifact("flattened"), new_context()
        found = by_path(artifact, "taylor", context, data)["3"]
        hidden, last = (artifact.model.get_submodule(path) for path in ("3", "5"))
        of_hidden, of_last = gradients_of(artifact.model, (hidden.weight, last.weight), context, slice(None))
        expected = (hidden.weight * of_hidden).abs().sum(1) + (last.weight * of_last).abs().sum(0)
        assert found == relative(expected)

    def test_hessian_is_the_curvature_by_single_samples_gradients(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evidence, "SINGLE_SAMPLES", len(data.train))
        artifact, context = zoo_artifact("flattened"), new_context()
        found = by_path(artifact, "hessian", context, data)["3"]
        weights = tuple(artifact.model.get_submodule(path).weight for path in ("3", "5"))
        of_hidden, of_last = (torch.zeros_like(weight) for weight in weights)
        for sample in range(len(data.train)):
            one = gradients_of(artifact.model, weights, context, slice(sample, sample + 1))
            of_hidden, of_last = of_hidden + one[0].square(), of_last + one[1].square()
        expected = (weights[0].square() * of_hidden).sum(1) + (weights[1].square() * of_last).sum(0)
        assert found == relative(expected)

    def test_activation_is_what_the_layers_behind_read(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = zoo_artifact("flattened")
        found = by_path(artifact, "activation", new_context(), data)
        inputs = data.train.batch(torch.arange(len(data.train))).inputs.values()
        pooled = artifact.model[:2](*inputs)  # pyright: ignore[reportIndexIssue, reportUnknownVariableType] # a Sequential
        assert found["0.0"] == relative(pooled.abs().mean((0, 2, 3)))

    @pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "taylor", "hessian", "activation", "bn_scale"])
    def test_a_dead_channel_matters_least(
        self, criterion: Criterion, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = zoo_artifact("depthwise")
        with torch.no_grad():
            for path, tensor in artifact.model.state_dict().items():
                if path.startswith(("0.", "1.")) and tensor.ndim:
                    tensor[5] = 0
            artifact.model.get_submodule("2").weight[:, 5] = 0
        scores = by_path(artifact, criterion, new_context(), data)["0.0"]
        assert scores[5] == 0
        assert sorted(scores)[1] > 0

    @pytest.mark.parametrize("criterion", get_args(Criterion))
    def test_a_norm_that_does_not_scale_has_no_say(
        self, criterion: Criterion, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        found = by_path(zoo_artifact("unscaled_norm"), criterion, new_context(), data)
        assert ("0" in found) == (criterion != "bn_scale")

    def test_random_is_the_same_for_the_same_seed_only(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = zoo_artifact("concat")
        first, again = (by_path(artifact, "random", new_context(seed=7), data) for _ in range(2))
        assert first == again != by_path(artifact, "random", new_context(seed=8), data)


def group(name: str, units: int) -> ChannelGroup:
    writer = Member(name, reads=False, writes=True, channels=tuple(range(units)), roots=tuple(range(units)))
    return ChannelGroup((writer,), units, parts=1)


def gone(ordered: list[Block], share: float) -> dict[str, float]:
    """The share of each group's units that is removed with the first `share` of the blocks."""
    found: dict[str, float] = {}
    for block in ordered[: round(len(ordered) * share)]:
        name = block.group.layers[0]
        found[name] = found.get(name, 0) + len(block.units) / block.group.num_units
    return found


EVEN = Scored(group("even", 32), (1.0,) * 32)
IDLE = Scored(group("idle", 64), (0.01,) * 32 + (1.99,) * 32)


class TestScopes:
    def test_global_takes_idle_channels_first(self) -> None:
        assert gone(blocks([EVEN, IDLE], 4, "l2"), 8 / 22) == {"idle": 0.5}

    def test_uniform_takes_the_same_share_of_every_group(self) -> None:
        ordered = evenly(blocks([EVEN, IDLE], 4, "l2"), attrgetter("layers"))
        assert gone(ordered, 12 / 22) == {"even": 0.5, "idle": 0.5}

    def test_isomorphic_takes_the_same_share_of_every_kind_and_chooses_within_it(self) -> None:
        model = nn.ModuleDict({"even": nn.Conv2d(1, 32, 3), "idle": nn.Conv2d(1, 64, 3), "linear": nn.Linear(1, 96)})
        linear = Scored(group("linear", 96), (1.0,) * 96)
        ordered = evenly(blocks([EVEN, IDLE, linear], 4, "l2"), structure(model))
        found = gone(ordered, 16 / 45)
        assert found["idle"] == 0.5  # a third of the 96 channels of convolutions, all from the idle half
        assert found["linear"] == pytest.approx(1 / 3)
        assert "even" not in found

    def test_sensitivity_takes_most_where_the_loss_rises_least(self) -> None:
        rises = {"even": [(0.5, 0.01), (0.875, 0.02)], "idle": [(0.5, 1.0), (0.9375, 2.0)]}
        found = gone(by_rise(blocks([EVEN, IDLE], 4, "l2"), rises), 7 / 22)
        assert found == {"even": 0.875}

    def test_lamp_weighs_a_block_against_what_is_left_of_its_group(self) -> None:
        prices = [block.price for block in blocks([Scored(group("one", 5), (1.0, 2.0, 3.0, 4.0, 5.0))], 1, "lamp")]
        assert prices == pytest.approx([1 / 15, 2 / 14, 3 / 12, 4 / 9])

    def test_measured_sensitivity_is_in_the_report_and_survives_a_kill(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        artifact, stage = zoo_artifact("concat"), Prune(keep=Budget(macs=0.6), scope="sensitivity", recover=UNTRAINED)
        pruned = stage.run(artifact, context)
        told: Any = context.journal.facts["sensitivity"]
        assert {each["layer"] for each in told} == {"left.0", "right.0", "both.0"}
        assert all(0 < each["removed"] < 1 and 0 <= each["accuracy"] <= 1 for each in told)
        file = context.checkpoints / "sensitivity-1.json"
        rises = [{**each, "loss_rise": 10 * each["loss_rise"]} for each in json.loads(file.read_bytes())]
        file.write_text(json.dumps(rises))
        assert stage.run(artifact, context).blueprint == pruned.blueprint
        again: Any = context.journal.facts["sensitivity"]
        assert [each["loss_rise"] for each in again] == [each["loss_rise"] for each in rises]


class TestSteps:
    def test_lead_to_the_budget_by_equal_shares_and_train_in_between(
        self, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        context, artifact = new_context(), zoo_artifact("concat")
        recovery = Recovery(epochs=1, knowledge=())
        pruned = Prune(keep=Budget(channels=0.5), round_to=2, steps=2, recover=recovery).run(artifact, context)
        first, second = (each["channels"] for each in context.journal.facts["steps"])  # pyright: ignore
        assert 0.65 < first <= 0.5**0.5
        assert 0.45 < second <= 0.5
        assert [len(edit.layers) > 0 for edit in pruned.blueprint.edits] == [True, True]  # pyright: ignore
        assert {file.stem for file in context.checkpoints.glob("*.safetensors")} == {"recover-1", "recover"}
        pruned.save(context.checkpoints, data.example())
        loaded = Artifact.load(context.checkpoints)
        assert layer_sizes(loaded.model) == layer_sizes(pruned.model)

    def test_of_which_one_cannot_be_reached_name_what_can(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        stage = Prune(keep=Budget(macs=0.01), steps=2, recover=UNTRAINED)
        with pytest.raises(StageError, match=r"cannot get down to 10\.0% of the macs"):
            stage.run(zoo_artifact("concat"), new_context())
