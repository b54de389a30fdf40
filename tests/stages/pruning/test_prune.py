"""Facts about the prune stage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint, Factorize, Resize, layer_sizes
from potstill.pipeline.cost import macs, num_parameters
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import StageError
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.teacher import Teacher
from potstill.stages.prune import Budget, Prune
from potstill.stages.pruning.importance import Criterion
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.contexts import context_on
from tests.support.family_data import family_artifact, family_data

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]
ZooArtifact = Callable[[str], Artifact]

UNTRAINED = Recovery(epochs=0)


def prune(budget: dict[str, float], **settings: Any) -> Prune:
    return Prune(keep=Budget(**budget), **{"recover": UNTRAINED, **settings})


def written(artifact: Artifact) -> dict[str, int]:
    return {path: size.out_channels for path, size in layer_sizes(artifact.model).items()}


def outputs(artifact: Artifact, data: Dataset) -> torch.Tensor:
    return artifact.model(*data.example(4).values()).detach()


class TestBudget:
    @pytest.mark.parametrize("wrong", [{}, {"macs": 0.5, "channels": 0.5}])
    def test_is_exactly_one_measure(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValidationError, match="exactly one of `channels`, `macs`, `parameters` and `latency`"):
            Budget(**wrong)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 50])
    def test_is_a_share_between_nothing_and_all(self, share: float) -> None:
        with pytest.raises(ValidationError):
            Budget(macs=share)

    @pytest.mark.parametrize("criterion", get_args(Criterion))
    def test_of_macs_is_met_from_just_below(
        self, criterion: str, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = new_artifact(width=16)
        pruned = prune({"macs": 0.6}, criterion=criterion).run(artifact, new_context())
        share = macs(pruned.model, data.example()) / macs(artifact.model, data.example())
        assert 0.45 < share <= 0.6

    def test_of_parameters_is_met(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact(width=16)
        pruned = prune({"parameters": 0.6}).run(artifact, new_context())
        assert 0.45 < num_parameters(pruned.model) / num_parameters(artifact.model) <= 0.6

    def test_of_channels_counts_all_layers_but_the_last(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        pruned = prune({"channels": 0.5}).run(zoo_artifact("frozen"), new_context())
        assert written(pruned) == {"0.0": 16, "0.1": 16, "1.0": 16, "1.1": 16, "2.linear": 4}

    def test_out_of_reach_is_refused_with_what_can_be_reached(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact, context = new_artifact(width=16), new_context()
        with pytest.raises(
            StageError, match=r"cannot get down to 1.0% of the macs.* Mend: `keep: {macs: 0\.\d+}`"
        ) as error:
            prune({"macs": 0.01}).run(artifact, context)
        share = float(str(error.value).split("{macs: ")[1].split("}")[0])
        pruned = prune({"macs": share}).run(artifact, context)
        assert set(written(pruned).values()) == {8, 4}


class TestCut:
    @pytest.mark.parametrize(
        "name",
        [
            "concat",
            "pre_activation",
            "squeeze_excite",
            "grouped",
            "depthwise",
            "flattened",
            "transposed",
            "frozen",
            "chunks",
            "layer_normed",
        ],
    )
    def test_of_every_kind_of_network_rebuilds_to_the_same_outputs(
        self, name: str, zoo_artifact: ZooArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        artifact, context = zoo_artifact(name), new_context()
        before = {path: tensor.clone() for path, tensor in artifact.model.state_dict().items()}
        pruned = prune({"macs": 0.7}).run(artifact, context)
        assert context.journal.facts["left alone"] == []
        assert macs(pruned.model, data.example()) <= 0.7 * macs(artifact.model, data.example())
        assert all(torch.equal(tensor, before[path]) for path, tensor in artifact.model.state_dict().items())
        pruned.save(tmp_path, data.example())
        assert torch.equal(outputs(Artifact.load(tmp_path), data), outputs(pruned, data))

    @pytest.mark.parametrize("round_to", [1, 4, 8])
    def test_leaves_multiples_of_what_was_asked(
        self, round_to: int, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact = new_artifact(width=20)
        pruned = prune({"macs": 0.7}, round_to=round_to).run(artifact, new_context())
        edit = pruned.blueprint.edits[-1]
        assert isinstance(edit, Resize)
        before = written(artifact)
        cut = {count for path, count in written(pruned).items() if count != before[path]}
        assert cut
        assert all(count % round_to == 0 for count in cut)

    def test_is_the_same_twice(self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset) -> None:
        artifact = new_artifact(width=16)
        stage = prune({"macs": 0.5}, criterion="taylor")
        first, second = (stage.run(artifact, new_context()) for _ in range(2))
        assert first.blueprint == second.blueprint
        assert torch.equal(outputs(first, data), outputs(second, data))

    def test_leaves_no_parameter_frozen(self, zoo_artifact: ZooArtifact, new_context: NewContext) -> None:
        artifact = zoo_artifact("frozen")
        assert not any(parameter.requires_grad for parameter in artifact.model.parameters())
        pruned = prune({"macs": 0.5}).run(artifact, new_context())
        assert all(parameter.requires_grad for parameter in pruned.model.parameters())
        assert not any(parameter.requires_grad for parameter in artifact.model.parameters())

    def test_says_for_each_layer_what_went(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        pruned = prune({"macs": 0.6}).run(new_artifact(width=16), context)
        rows = {row["path"]: row for row in context.journal.facts["layers"]}  # pyright: ignore
        assert {path: row["channels_after"] for path, row in rows.items()} == {
            path: count for path, count in written(pruned).items() if path in rows
        }
        assert sum(row["macs_after"] for row in rows.values()) <= 0.6 * sum(row["macs_before"] for row in rows.values())

    def test_works_after_factorization(self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset) -> None:
        artifact = new_artifact(width=16)
        edit = Factorize(layers={"layer3.0.conv2": {"kind": "tucker2", "ranks": (32, 32)}})  # pyright: ignore
        edit.apply(artifact.model)
        artifact = replace(artifact, model=artifact.model.eval(), blueprint=artifact.blueprint.with_edit(edit))
        pruned = prune({"macs": 0.5}).run(artifact, new_context())
        assert written(pruned)["layer3.0.conv2.1"] < 32
        assert pruned.blueprint.build()(*data.example().values()).shape == (2, 4)

    def test_is_trained_back_against_the_teacher(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = new_artifact(width=16)
        cut = prune({"macs": 0.5}).run(artifact, new_context())
        recovered = prune({"macs": 0.5}, recover=Recovery(epochs=1)).run(artifact, new_context(Teacher(artifact)))
        assert recovered.blueprint == cut.blueprint
        assert not torch.equal(outputs(recovered, data), outputs(cut, data))


class TestTransformers:
    @pytest.mark.parametrize("criterion", ["taylor", "fpgm", "random"])
    def test_lose_their_stream_and_the_widths_of_heads_by_any_criterion(self, criterion: str, tmp_path: Path) -> None:
        data = family_data("text_encoder")
        artifact, context = family_artifact("text_encoder", data), context_on(data, tmp_path)
        pruned = prune({"parameters": 0.6}, criterion=criterion, round_to=4).run(artifact, context)
        left = written(pruned)
        assert left["words"] == left["positions"] == left["norm"] == left["layers.1.project"] < 32
        assert left["layers.0.attention.query"] == left["layers.0.attention.key"] < 32
        assert left["layers.0.attention.value"] < 32
        pruned.save(tmp_path / "saved", data.example())
        assert torch.equal(outputs(Artifact.load(tmp_path / "saved"), data), outputs(pruned, data))

    def test_keep_what_no_layer_reads_where_only_that_is_judged(self, tmp_path: Path) -> None:
        data = family_data("text_encoder")
        artifact, context = family_artifact("text_encoder", data), context_on(data, tmp_path)
        left = written(prune({"parameters": 0.6}, criterion="activation", round_to=4).run(artifact, context))
        assert left["layers.0.attention.query"] == left["layers.0.attention.key"] == 32
        assert "`criterion: activation` says nothing about them, since no layer reads them" in str(
            context.journal.facts["left alone"]
        )

    def test_lose_whole_heads_where_asked(self, tmp_path: Path) -> None:
        data = family_data("vit_fused_qkv")
        artifact, context = family_artifact("vit_fused_qkv", data), context_on(data, tmp_path)
        pruned = prune({"macs": 0.5}, heads=True, scope="uniform").run(artifact, context)
        edit = pruned.blueprint.edits[-1]
        assert isinstance(edit, Resize)
        assert edit.attributes == {f"layers.{layer}.attention.heads": 2 for layer in (0, 1)}
        assert written(pruned)["layers.0.attention.qkv"] == 48
        pruned.save(tmp_path / "saved", data.example())
        assert torch.equal(outputs(Artifact.load(tmp_path / "saved"), data), outputs(pruned, data))

    def test_without_heads_cannot_lose_any(self, zoo_artifact: ZooArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"`heads: true`, but there is no attention.* Mend: drop `heads`"):
            prune({"macs": 0.5}, heads=True).run(zoo_artifact("layer_normed"), new_context())


class TestLeavingAlone:
    def test_ignored_layers_keep_their_outputs(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact, context = new_artifact(width=16), new_context()
        pruned = prune({"macs": 0.8}, ignore=("layer3.*",)).run(artifact, context)
        assert all(count == 64 for path, count in written(pruned).items() if path.startswith("layer3"))
        assert "`ignore` names layer3.0.conv1" in str(context.journal.facts["left alone"])

    def test_a_pattern_that_names_nothing_is_refused(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"stage3\.\*"):
            prune({"macs": 0.8}, ignore=("stage3.*",)).run(new_artifact(width=16), new_context())

    def test_padding_shortcuts_keep_the_channels_that_meet_the_padding(
        self, new_context: NewContext, data: Dataset
    ) -> None:
        reference = ResNet(depth=8, width=16, shortcut="pad")
        blueprint = Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=4)
        artifact, context = Artifact(model=blueprint.build().eval(), blueprint=blueprint), new_context()
        pruned = prune({"macs": 0.4}, round_to=4).run(artifact, context)
        left = written(pruned)
        stem = left["conv1"]
        assert stem < 16
        # A stage keeps its 16 or 32 channels of padding, and those of the stage before that meet them.
        assert (left["layer1.0.conv2"], left["layer2.0.conv2"], left["layer3.0.conv2"]) == (stem, stem + 16, stem + 48)
        assert "layer2.0.conv2, layer2.0.bn2, layer3.0.conv2, layer3.0.bn2 keep some of their channels" in str(
            context.journal.facts["left alone"]
        )

    def test_a_recurrent_layer_and_what_enters_it(self, tmp_path: Path) -> None:
        data = family_data("lstm")
        context = context_on(data, tmp_path)
        pruned = prune({"channels": 0.9}).run(family_artifact("lstm", data), context)
        assert (written(pruned)["embed"], written(pruned)["hidden"]) == (16, 24)
        assert "recurrent keeps its channels: what happens inside of it (LSTM" in str(
            context.journal.facts["left alone"]
        )

    def test_a_layer_that_stands_at_two_places_is_not_cut(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        pruned = prune({"macs": 0.8}).run(zoo_artifact("twice"), context)
        assert written(pruned)["again"] == 16
        assert written(pruned)["wide.0"] < 32
        assert "shares its weights" in str(context.journal.facts["left alone"])


class TestRefusing:
    def test_a_model_without_hidden_layers(self, zoo_artifact: ZooArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"no layer whose channels can be pruned\. Mend: drop the stage"):
            prune({"macs": 0.5}).run(zoo_artifact("without_layers"), new_context())

    def test_a_view_with_its_size_written_into_the_code(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        with pytest.raises(
            StageError, match="conv keeps its channels: the cut network does not run, as where code holds"
        ):
            prune({"macs": 0.5}).run(zoo_artifact("hard_coded_view"), new_context())

    def test_layers_that_are_as_narrow_as_the_rounding_allows(
        self, zoo_artifact: ZooArtifact, new_context: NewContext
    ) -> None:
        with pytest.raises(StageError, match=r"more than `round_to: 8` channels.* Mend: lower `round_to`"):
            prune({"macs": 0.5}).run(zoo_artifact("narrow"), new_context())

    def test_is_found_by_the_rehearsal(self, zoo_artifact: ZooArtifact, new_context: NewContext) -> None:
        stage = prune({"macs": 0.5}, criterion="taylor", recover=Recovery(epochs=5)).untrained()
        assert stage.recover.epochs == 0
        with pytest.raises(StageError):
            stage.run(zoo_artifact("without_layers"), new_context())


def test_a_quantized_artifact_is_pruned_and_its_grids_found_anew(
    new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
) -> None:
    artifact = new_artifact(width=16)
    quantized = Quantize(recover=UNTRAINED).run(artifact, new_context())
    pruned = prune({"macs": 0.5}).run(quantized, new_context())
    assert pruned.quantization is not None
    assert pruned.quantization.weights == quantized.quantization.weights  # pyright: ignore
    assert pruned.quantization.activations != quantized.quantization.activations  # pyright: ignore
    assert macs(pruned.model, data.example()) <= 0.5 * macs(artifact.model, data.example())
    pruned.save(tmp_path, data.example())
