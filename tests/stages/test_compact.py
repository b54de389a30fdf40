"""Facts about compact filters: the fit, which layers get them, and what comes back from disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.bench import Beside
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.compact_filters import Compact as CompactEdit
from potstill.pipeline.compact_filters import CompactFilter
from potstill.pipeline.cost import macs, macs_by_layer
from potstill.pipeline.data import Batch, Dataset
from potstill.pipeline.errors import ArtifactError, StageError
from potstill.pipeline.teacher import Teacher
from potstill.stages.compact import Compact, Left
from potstill.stages.compaction.fitting import fitted, patches_of
from potstill.stages.compaction.layers import plans
from potstill.stages.prune import Budget, Prune
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from potstill.stages.train import Train
from tests.support.families import FAMILIES

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

UNTRAINED = Recovery(epochs=0)
SEPARABLE = CompactFilter(kind="depthwise_separable", number=1)


def compact(**settings: Any) -> Compact:
    return Compact(**{"recover": UNTRAINED, **settings})


def decided(context: Context, name: str, verdict: str) -> None:
    """Put down a measurement as if it had been made before a kill."""
    ratio = 2.0 if verdict == "faster" else 0.8
    values = {"baseline_ms": 1.0, "candidate_ms": 1 / ratio, "baseline_bytes": 9, "candidate_bytes": 8}
    beside = Beside.model_validate({"ratio": ratio, "low": ratio, "high": ratio, "verdict": verdict} | values)
    (context.checkpoints / f"{name}.json").write_text(beside.model_dump_json())


class TestFit:
    @pytest.fixture(params=[True, False], ids=["bias", "no bias"])
    def network(self, request: pytest.FixtureRequest) -> nn.Sequential:
        """Two convolutions, the second one strided, padded and read behind a ReLU."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            second = nn.Conv2d(6, 8, 3, 2, 1, bias=request.param)
            return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), second).eval()

    @pytest.fixture
    def batches(self) -> list[Batch]:
        """Sixty-four images."""
        draws = torch.Generator().manual_seed(1)
        images = torch.randn(4, 16, 3, 12, 12, generator=draws)
        return [Batch({"image": each}, torch.zeros(16), torch.arange(16)) for each in images]

    @pytest.mark.parametrize("kind", ["depthwise_separable", "grouped"])
    @torch.no_grad()
    def test_its_error_is_that_of_the_layers_outputs(
        self, kind: Any, network: nn.Sequential, batches: list[Batch]
    ) -> None:
        layer = network[2]
        assert isinstance(layer, nn.Conv2d)
        form, error = fitted(
            layer, CompactFilter(kind=kind, number=2), patches_of(network, "2", batches, torch.Generator()), "2"
        )
        inputs = network[:2](torch.cat([batch.inputs["image"] for batch in batches]))
        outputs = layer(inputs)
        centre = outputs.mean((0, 2, 3), keepdim=True) if layer.bias is not None else 0
        wrong = (outputs - form(inputs)).square().sum() / (outputs - centre).square().sum()
        assert 0.05 < error < 0.8
        assert error == pytest.approx(float(wrong), rel=1e-4)

    @torch.no_grad()
    def test_is_nearer_than_the_best_approximation_of_the_weight(
        self, network: nn.Sequential, batches: list[Batch]
    ) -> None:
        layer = network[2]
        assert isinstance(layer, nn.Conv2d)
        _, error = fitted(layer, SEPARABLE, patches_of(network, "2", batches, torch.Generator()), "2")
        inputs = network[:2](torch.cat([batch.inputs["image"] for batch in batches]))
        by_weight = nn.Conv2d(6, 8, 3, 2, 1)
        left, values, right = torch.linalg.svd(layer.weight.flatten(2).transpose(0, 1), full_matrices=False)
        rank_one = torch.einsum("io,i,ik->oik", left[..., 0], values[:, 0], right[:, 0])
        by_weight.weight.copy_(rank_one.view_as(layer.weight))
        by_weight.bias = layer.bias
        outputs = layer(inputs)
        centre = outputs.mean((0, 2, 3), keepdim=True) if layer.bias is not None else 0
        wrong = (outputs - by_weight(inputs)).square().sum() / (outputs - centre).square().sum()
        assert error < 0.95 * float(wrong)

    @pytest.mark.parametrize("number", [9, 10])
    @torch.no_grad()
    def test_with_a_filter_for_every_position_of_the_window_nothing_is_lost(
        self, number: int, network: nn.Sequential, batches: list[Batch]
    ) -> None:
        layer = network[2]
        assert isinstance(layer, nn.Conv2d)
        patches = patches_of(network, "2", batches, torch.Generator())
        form, error = fitted(layer, CompactFilter(kind="depthwise_separable", number=number), patches, "2")
        inputs = torch.randn(2, 6, 9, 9)
        torch.testing.assert_close(form(inputs), layer(inputs), atol=1e-4, rtol=1e-4)
        assert error < 1e-8

    @pytest.mark.parametrize("settings", [{"padding_mode": "reflect"}, {"dilation": 2}, {"padding": "same"}])
    @torch.no_grad()
    def test_reads_the_patches_that_the_layer_reads(self, settings: dict[str, Any], batches: list[Batch]) -> None:
        settings = {"padding": 1, "bias": False} | settings
        layer = nn.Conv2d(3, 4, 3, **settings)
        patches = patches_of(nn.Sequential(layer), "0", batches, torch.Generator())
        outputs = layer(torch.cat([batch.inputs["image"] for batch in batches]))
        weight = layer.weight.flatten(1).double()
        predicted = (weight @ patches.moments * weight).sum(1)
        torch.testing.assert_close(predicted, outputs.double().square().mean((0, 2, 3)), rtol=1e-4, atol=1e-6)

    def test_of_an_input_that_is_always_zero_keeps_the_weight(self) -> None:
        layer = nn.Conv2d(2, 4, 3)
        batch = Batch({"image": torch.zeros(4, 2, 6, 6)}, torch.zeros(4), torch.arange(4))
        patches = patches_of(nn.Sequential(layer), "0", [batch], torch.Generator())
        form, error = fitted(layer, CompactFilter(kind="grouped", number=2), patches, "0")
        assert error == 0
        assert isinstance(form, nn.Conv2d)
        torch.testing.assert_close(form.weight[:2], layer.weight[:2, :1])


class TestPlans:
    def test_name_every_convolution_and_why_it_stays(self) -> None:
        family = FAMILIES["mobilenet_v3"]
        model = family.network()
        reasons = {plan.path: plan.kept_because for plan in plans(model, SEPARABLE, family.example(), ())}
        assert reasons["1.depthwise.0"] == "is depthwise"
        assert reasons["1.expand.0"] == "is a 1×1 convolution"
        assert reasons["0.0"] is None
        assert len(reasons) == sum(isinstance(module, nn.Conv2d) for module in model.modules())

    def test_groups_that_do_not_divide_the_channels_are_left_out(
        self, new_artifact: NewArtifact, data: Dataset
    ) -> None:
        four = CompactFilter(kind="grouped", number=4)
        reasons = {plan.path: plan.kept_because for plan in plans(new_artifact().model, four, data.example(), ())}
        assert reasons["conv1"] == "its 1 to 8 channels do not divide into 4 groups"
        assert reasons["layer1.0.conv1"] is None

    def test_count_what_the_compact_model_costs(self, new_artifact: NewArtifact, data: Dataset) -> None:
        model = new_artifact().model
        planned = plans(model, SEPARABLE, data.example(), ("layer1*",))
        CompactEdit(layers={plan.path: plan.filters for plan in planned if plan.is_compacted}).apply(model)
        after = macs_by_layer(model, data.example())
        for plan in planned:
            if plan.is_compacted:
                assert plan.macs_after == after[f"{plan.path}.0"] + after[f"{plan.path}.1"]

    def test_code_that_reaches_into_a_layer_is_named(self) -> None:
        class Reaching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 16, 3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.conv(x) + self.conv.weight.mean()

        with pytest.raises(StageError, match="does not run once its layers have compact filters"):
            plans(Reaching().eval(), SEPARABLE, {"x": torch.rand(2, 3, 8, 8)}, ())


class TestStage:
    def test_every_layer_is_replaced_and_comes_back_bit_equal(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        artifact, context = new_artifact(), new_context()
        smaller = compact(ignore=("conv1",)).run(artifact, context)
        assert macs(smaller.model, data.example()) < 0.5 * macs(artifact.model, data.example())
        smaller.save(tmp_path, data.example())
        batch = data.example(4).values()
        with torch.no_grad():
            assert torch.equal(Artifact.load(tmp_path).model(*batch), smaller.model(*batch))
        facts: Any = context.journal.facts["layers"]
        assert all(0 < fact["fit_error"] < 1 for fact in facts if fact["decision"] == "compacted")
        assert {fact["path"]: fact["decision"] for fact in facts}["conv1"] == "kept: named in `ignore`"

    def test_a_budget_takes_the_layers_whose_loss_rises_least_for_what_they_save(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = Train(epochs=2).run(new_artifact(depth=14), new_context(step="train"))
        context = new_context()
        smaller = compact(keep=Left(macs=0.7)).run(artifact, context)
        share = macs(smaller.model, data.example()) / macs(artifact.model, data.example())
        assert 0.5 < share <= 0.7
        facts: Any = context.journal.facts["layers"]
        price = [
            (max(fact["loss_rise"], 0) / fact["macs_before"], fact["decision"]) for fact in facts if "loss_rise" in fact
        ]
        dense = [each for each, decision in price if decision == "kept: the budget is met without it"]
        gone = [each for each, decision in price if decision == "compacted"]
        assert dense
        assert sum(gone) / len(gone) < sum(dense) / len(dense)

    def test_recovery_trains_both_filters(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact()
        untrained = compact().run(artifact, new_context())
        trained = compact(recover=Recovery(epochs=1)).run(artifact, new_context(Teacher(artifact), step="02"))
        for part in ("0", "1"):
            path = f"layer3.0.conv1.{part}.weight"
            assert not torch.equal(trained.model.state_dict()[path], untrained.model.state_dict()[path])

    def test_prune_cuts_a_compact_network(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        smaller = compact(ignore=("conv1",)).run(new_artifact(width=16), new_context())
        pruned = Prune(keep=Budget(channels=0.7), round_to=4, criterion="l2", recover=UNTRAINED).run(
            smaller, new_context(step="02")
        )
        assert macs(pruned.model, data.example()) < macs(smaller.model, data.example())
        pruned.save(tmp_path, data.example())

    def test_a_quantized_network_gets_quantizers_on_its_new_layers(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        quantized = Quantize(recover=UNTRAINED).run(new_artifact(), new_context())
        smaller = compact(ignore=("conv1",)).run(quantized, new_context(step="02"))
        assert smaller.quantization is not None
        assert {"layer1.0.conv1.0.weight", "layer1.0.conv1.1.weight"} <= set(smaller.quantization.weights)
        smaller.save(tmp_path, data.example())

    def test_out_of_reach_says_what_can_be_reached(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"cannot get down to 1\.0% of the macs.*Mend: `keep: \{macs: 0\.\d+\}`"):
            compact(keep=Left(macs=0.01)).run(new_artifact(), new_context())

    def test_a_network_without_such_layers_is_refused(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match="no layer can have compact filters: `conv1` named in `ignore`"):
            compact(ignore=("conv1", "layer*")).run(new_artifact(), new_context())


class TestAccept:
    def test_only_layers_whose_compact_form_is_faster_are_replaced(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        decided(context, "layer-0", "faster")
        for number in range(1, 9):
            decided(context, f"layer-{number}", "slower")
        decided(context, "accept", "faster")
        smaller = compact(accept="faster").run(new_artifact(), context)
        (edit,) = smaller.blueprint.edits
        assert isinstance(edit, CompactEdit)
        assert list(edit.layers) == ["conv1"]
        facts: Any = context.journal.facts["layers"]
        assert all("slower" in fact["decision"] for fact in facts if fact["path"].startswith("layer1"))

    def test_where_no_layer_is_faster_the_model_goes_on(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(), new_context()
        for number in range(9):
            decided(context, f"layer-{number}", "slower")
        assert compact(accept="faster").run(artifact, context) is artifact
        assert str(context.journal.facts["compacted layers"]).startswith("0 of")

    def test_a_model_whose_engine_gains_nothing_goes_on(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(), new_context()
        decided(context, "accept", "slower")
        context.checkpoints.joinpath("accept.json").write_text(
            json.dumps(json.loads(context.checkpoints.joinpath("accept.json").read_text()) | {"candidate_bytes": 10})
        )
        assert compact(accept="smaller").run(artifact, context) is artifact
        assert "undone" in context.journal.facts

    def test_a_rehearsal_times_nothing(self) -> None:
        stage = Compact(accept="faster")
        assert stage.decides_by_engine
        assert not stage.untrained().decides_by_engine


class TestRefusals:
    def test_settings_of_the_other_kind(self) -> None:
        with pytest.raises(ValidationError, match="`groups` is for `kind: grouped`"):
            Compact(groups=4)
        with pytest.raises(ValidationError, match="`multiplier` is for `kind: depthwise_separable`"):
            Compact(kind="grouped", multiplier=2)

    def test_a_blueprint_whose_layer_cannot_have_such_filters(self, new_artifact: NewArtifact) -> None:
        edit = CompactEdit(layers={"linear": SEPARABLE})
        blueprint: Blueprint = new_artifact().blueprint.with_edit(edit)
        with pytest.raises(ArtifactError, match="gives `linear`, a Linear, 1 depthwise_separable filters"):
            blueprint.build()
