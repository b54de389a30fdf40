"""Facts about residual blocks that are taken out whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Bypass
from potstill.pipeline.cost import macs
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import StageError
from potstill.pipeline.networks.mobilenet_v2 import MobileNetV2
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.resnet_imagenet import ImageNetResNet
from potstill.pipeline.networks.vgg import VGG
from potstill.pipeline.networks.vit import ViT
from potstill.pipeline.networks.wrn import WideResNet
from potstill.stages.drop_blocks import Depth, DropBlocks
from potstill.stages.pruning.channels import CutError
from potstill.stages.pruning.depth import Drop, block_times, drops, prove_without, residual_blocks
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from potstill.stages.train import Train
from tests.support.families import FAMILIES

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

UNTRAINED = Recovery(epochs=0)
IMAGES = {"image": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def drop(budget: dict[str, float], **settings: Any) -> DropBlocks:
    return DropBlocks(keep=Depth(**budget), **{"recover": UNTRAINED, **settings})


class TestResidualBlocks:
    @pytest.mark.parametrize(
        ("network", "blocks"),
        [
            (ResNet(depth=14), ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]),
            (ResNet(depth=14, shortcut="pad"), ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]),
            (WideResNet(depth=16, widen=1), ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]),
            (ViT(depth=3, width=32, heads=2), ["blocks.0", "blocks.1", "blocks.2"]),
            (VGG(depth=8), []),
        ],
        ids=str,
    )
    def test_are_found_by_what_they_do(self, network: Any, blocks: list[str]) -> None:
        assert residual_blocks(network.build((3, 32, 32), 5).eval(), IMAGES) == blocks

    @pytest.mark.parametrize("network", [ImageNetResNet(depth=50, width=8), MobileNetV2(width=0.25)], ids=str)
    def test_of_bottlenecks_are_those_that_keep_the_shape(self, network: Any) -> None:
        model = network.build((3, 32, 32), 5).eval()
        blocks = residual_blocks(model, IMAGES)
        assert len(blocks) >= 8
        assert not any(path.endswith(".0") and path != "layer1.0" and path.count(".") == 1 for path in blocks)

    def test_of_convnext_are_its_blocks(self) -> None:
        family = FAMILIES["convnext"]
        model = family.network()
        kinds = {type(model.get_submodule(path)).__name__ for path in residual_blocks(model, family.example())}
        assert kinds == {"ConvNeXtBlock"}

    def test_that_run_twice_are_left_out(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = ResNet(depth=8).build((3, 32, 32), 5).get_submodule("layer1.0")

            def forward(self, x: Tensor) -> Tensor:
                return self.block(self.block(x))

        assert residual_blocks(Twice().eval(), {"x": torch.rand(2, 16, 8, 8)}) == []

    def test_that_code_reaches_into_cannot_go(self) -> None:
        class Reaching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = ResNet(depth=8).build((3, 32, 32), 5).get_submodule("layer1.0")

            def forward(self, x: Tensor) -> Tensor:
                return self.block(x) + self.block.conv1.weight.mean()  # pyright: ignore

        with pytest.raises(CutError, match="the cut network does not run"):
            prove_without(Reaching().eval(), ["block"], {"x": torch.rand(2, 16, 8, 8)})


class TestBudget:
    @pytest.mark.parametrize("wrong", [{}, {"macs": 0.5, "blocks": 0.5}])
    def test_is_exactly_one_measure(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValidationError, match="exactly one of `blocks`, `macs` and `latency`"):
            Depth(**wrong)

    def test_of_macs_is_met_with_the_fewest_blocks(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact, context = new_artifact(depth=20), new_context()
        dropped = drop({"macs": 0.7}).run(artifact, context)
        told: Any = context.journal.facts["sensitivity"]
        (edit,) = dropped.blueprint.edits
        assert isinstance(edit, Bypass)
        left = [each["macs_left"] for each in told]
        assert left[len(edit.blocks) - 1] <= 0.7 < left[len(edit.blocks) - 2]
        share = macs(dropped.model, data.example()) / macs(artifact.model, data.example())
        assert share == pytest.approx(left[len(edit.blocks) - 1])

    def test_of_blocks_is_a_share_of_those_that_can_go(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        drop({"blocks": 0.5}).run(new_artifact(depth=14), context)
        assert str(context.journal.facts["blocks taken out"]).startswith("2 of 4: ")

    def test_out_of_reach_says_what_can_be_reached(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"cannot get down to 1\.0% of the macs.*Mend: `keep: \{macs: 0\.\d+\}`"):
            drop({"macs": 0.01}).run(new_artifact(depth=14), new_context())

    def test_of_latency_goes_on_with_what_was_timed(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        context.checkpoints.mkdir(parents=True, exist_ok=True)
        trial = {"blocks_removed": 3, "predicted": 0.6, "share": 0.6, "p50_ms": 0.6, "uncut_p50_ms": 1.0}
        decision = {"removed": [0, 1, 3], "measured": trial, "trials": [trial]}
        blocks = ("layer1.0", "layer1.1", "layer2.1", "layer3.1")
        order = [
            Drop(block=block, loss_rise=0.1, metric=0.9, macs_left=0.8, ms_saved=1.0 + number).model_dump()
            for number, block in enumerate(blocks)
        ]
        (context.checkpoints / "drops.json").write_text(json.dumps(order))
        (context.checkpoints / "latency.json").write_text(json.dumps(decision))
        drop({"latency": 0.7}).run(new_artifact(depth=14), context)
        assert context.journal.facts["blocks taken out"] == "3 of 4: layer1.0, layer1.1, layer3.1"
        (context.checkpoints / "latency.json").write_text(json.dumps(decision | {"removed": None}))
        with pytest.raises(StageError, match=r"without any of the residual blocks .* 60\.0% remain"):
            drop({"latency": 0.5}).run(new_artifact(depth=14), context)

    def test_of_latency_counts_the_milliseconds_of_the_blocks_that_are_gone(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        ms = {"layer1.0": 0.5, "layer1.1": 0.5, "layer2.1": 0.25, "layer3.1": 0.125}
        order = drops(new_artifact(depth=14).model, list(ms), new_context(), ms)
        gone = [sum(ms[drop.block] for drop in order[: count + 1]) for count in range(len(order))]
        assert [drop.ms_saved for drop in order] == gone

    def test_of_latency_times_equal_blocks_once(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        blocks = ["layer1.0", "layer1.1"]
        times = block_times(new_artifact(depth=14).model, blocks, None, new_context())
        assert list(times) == blocks
        assert times["layer1.0"] == times["layer1.1"] >= 0


class TestStage:
    def test_a_block_that_does_nothing_goes_first_and_nothing_changes(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        artifact = Train(epochs=4).run(new_artifact(depth=14), new_context(step="train"))
        with torch.no_grad():
            for parameter in artifact.model.get_submodule("layer2.1.bn2").parameters():
                parameter.zero_()
        dropped = drop({"blocks": 0.8}).run(artifact, new_context())
        assert dropped.blueprint.edits == (Bypass(blocks=("layer2.1",)),)
        batch = data.example(4).values()
        with torch.no_grad():
            torch.testing.assert_close(dropped.model(*batch), artifact.model(*batch))
            dropped.save(tmp_path, data.example())
            assert torch.equal(Artifact.load(tmp_path).model(*batch), dropped.model(*batch))

    def test_ignored_blocks_stay(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        drop({"blocks": 0.5}, ignore=("layer1",)).run(new_artifact(depth=14), context)
        assert "of 2: " in str(context.journal.facts["blocks taken out"])
        assert "layer1" not in str(context.journal.facts["blocks taken out"])

    def test_a_network_without_such_blocks_is_refused(self, new_context: NewContext, new_artifact: NewArtifact) -> None:
        with pytest.raises(StageError, match="no residual block that can be taken out"):
            drop({"macs": 0.5}, ignore=("layer1",)).run(new_artifact(depth=8), new_context())

    def test_a_rehearsal_times_nothing(self) -> None:
        stage = drop({"latency": 0.7}, accept="faster")
        assert stage.decides_by_engine
        assert stage.untrained().keep == Depth(blocks=0.7)
        assert not stage.untrained().decides_by_engine
