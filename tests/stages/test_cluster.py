"""Facts about weights that come to share a few values."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruption import StoppingProgress
from pydantic import ValidationError
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.bench import Beside
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import StageError
from potstill.pipeline.sharing import codebook_of, shared_weights
from potstill.pipeline.teacher import Teacher
from potstill.stages.cluster import Cluster
from potstill.stages.clustering.kmeans import nearest_centres
from potstill.stages.clustering.layers import plans
from potstill.stages.drop_blocks import Depth, DropBlocks
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.prune import Budget, Prune
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context, Stage
from potstill.stages.train import Train

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

UNTRAINED = Recovery(epochs=0)


def cluster(**settings: Any) -> Cluster:
    return Cluster(**{"recover": UNTRAINED, **settings})


def values_of(layer: nn.Module) -> int:
    assert isinstance(layer.weight, torch.Tensor)
    return len(layer.weight.unique())


class TestNearestCentres:
    @given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.integers(2, 9))
    @settings(max_examples=60, deadline=None)
    def test_every_value_is_with_the_centre_nearest_to_it(self, numbers: list[float], clusters: int) -> None:
        values = torch.tensor(numbers)
        found = nearest_centres(values, clusters)
        centres = {int(number): float(values[found == number].double().mean()) for number in found.unique()}
        for value, number in zip(values.double(), found, strict=True):
            distances = {other: abs(float(value) - centre) for other, centre in centres.items()}
            assert distances[int(number)] <= min(distances.values()) + 1e-9

    def test_as_many_values_as_centres_each_have_their_own(self) -> None:
        assert nearest_centres(torch.tensor([3.0, 0.0, 1.0, 2.0]), 4).tolist() == [3, 0, 1, 2]

    def test_of_nothing_is_nothing(self) -> None:
        assert nearest_centres(torch.zeros(0), 4).tolist() == []


class TestStage:
    @pytest.mark.parametrize("how", [{}, {"bits": 3}, {"clusters": 5}])
    def test_no_layer_has_more_values_than_asked(
        self, how: dict[str, int], new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(width=16), new_context()
        shared = cluster(**how).run(artifact, context)
        most = how["clusters"] if "clusters" in how else 2 ** how.get("bits", 4)
        paths = shared_weights(shared.model)
        assert len(paths) >= 6
        for path in paths:
            assert values_of(shared.model.get_submodule(path)) <= most
        facts: Any = context.journal.facts["layers"]
        small = {fact["path"]: fact["decision"] for fact in facts}["conv1"]
        assert small == "kept: is so small that a codebook would save nothing"

    def test_training_moves_the_values_and_no_weight_to_another_value(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact = Train(epochs=2).run(new_artifact(width=16), new_context(step="train"))
        untrained = cluster(bits=2).run(artifact, new_context())
        context = new_context(teacher=Teacher(artifact), step="02-cluster")
        trained = cluster(bits=2, recover=Recovery(epochs=1)).run(artifact, context)
        before, after = shared_weights(untrained.model), shared_weights(trained.model)
        for path, shared in after.items():
            assert torch.equal(shared.packed, before[path].packed)
            moved = [codebook_of(each.model.get_submodule(path)) for each in (untrained, trained)]
            assert not torch.equal(*moved)
        assert context.journal.curve[-1].loss < 2

    def test_an_interrupted_training_ends_as_the_undisturbed_one(
        self, new_artifact: NewArtifact, new_context: NewContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifact, stage = new_artifact(width=16), cluster(bits=3, recover=Recovery(epochs=2))
        undisturbed = stage.run(artifact, new_context(Teacher(artifact), step="calm"))
        monkeypatch.setattr("potstill.pipeline.training.CHECKPOINT_SECONDS", 0.0)
        stormy = new_context(Teacher(artifact), step="stormy")
        with pytest.raises(KeyboardInterrupt):
            stage.run(artifact, replace(stormy, progress=StoppingProgress(4)))
        resumed = stage.run(artifact, stormy)
        state, other = undisturbed.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())

    def test_what_was_pruned_to_zero_stays_zero(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact(width=16)
        weight = artifact.model.get_submodule("layer3.0.conv2").weight
        assert isinstance(weight, nn.Parameter)
        with torch.no_grad():
            weight[weight.abs() < 0.02] = 0
        zeros = weight == 0
        context = new_context(teacher=Teacher(new_artifact(seed=1)))
        shared = cluster(bits=3, recover=Recovery(epochs=1)).run(artifact, context)
        after = shared.model.get_submodule("layer3.0.conv2")
        assert isinstance(after.weight, torch.Tensor)
        assert torch.equal(after.weight == 0, zeros)
        assert values_of(after) <= 8

    def test_the_artifact_on_disk_is_small_and_reloads_bit_equal(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        artifact = new_artifact(width=16)
        shared = cluster(bits=4).run(artifact, new_context())
        shared.save(tmp_path / "shared", data.example())
        artifact.save(tmp_path / "whole", data.example())
        sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "shared")]
        assert sizes[0] / sizes[1] > 5
        batch = data.example(4).values()
        with torch.no_grad():
            assert torch.equal(Artifact.load(tmp_path / "shared").model(*batch), shared.model(*batch))

    def test_two_stages_give_layers_different_codebooks(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        first = cluster(bits=5, ignore=("layer3*",)).run(new_artifact(width=16), new_context())
        second = cluster(bits=2).run(first, new_context(step="02"))
        clusters = {path: shared.codebook.clusters for path, shared in shared_weights(second.model).items()}
        assert clusters["layer2.0.conv1"] == 32
        assert clusters["layer3.0.conv1"] == 4

    def test_blocks_can_go_from_a_network_that_shares_weights(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        shared = cluster().run(new_artifact(depth=14, width=16), new_context())
        shallower = DropBlocks(keep=Depth(blocks=0.8), recover=UNTRAINED).run(shared, new_context(step="02"))
        assert 0 < len(shared_weights(shallower.model)) < len(shared_weights(shared.model))
        shallower.save(tmp_path, data.example())

    def test_a_tied_weight_is_left_alone_by_name(self) -> None:
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
        model[1].weight = model[0].weight
        reasons = {plan.path: plan.kept_because for plan in plans(model, 4, ())}
        assert reasons == {**dict.fromkeys("01", "is the weight of another layer, too"), "2": None}

    def test_weights_of_other_tensors_and_grouped_transposed_ones_are_left_alone(self) -> None:
        model = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), nn.ConvTranspose2d(64, 64, 3, groups=2)
        )
        reasons = [plan.kept_because for plan in plans(model, 4, ())]
        assert reasons == ["its weight is computed from other tensors", "is a grouped transposed convolution"]

    def test_where_nothing_would_get_smaller_the_model_goes_on(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact = new_artifact(width=8)
        assert cluster(bits=8, ignore=("layer*",)).run(artifact, new_context()) is artifact

    def test_a_pattern_that_matches_nothing_is_refused(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        with pytest.raises(StageError, match="'head' matches no module"):
            cluster(ignore=("head",)).run(new_artifact(), new_context())


class TestAccept:
    def test_a_smaller_file_is_kept(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        shared = cluster(accept="smaller").run(new_artifact(width=16), context)
        assert shared_weights(shared.model)
        assert str(context.journal.facts["accepted"]).startswith("the engine is smaller")

    def test_a_file_that_did_not_get_smaller_undoes_it(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact, context = new_artifact(width=16), new_context()
        found = Beside(
            ratio=1, low=1, high=1, verdict="slower", baseline_ms=1, candidate_ms=1, baseline_bytes=8, candidate_bytes=9
        )
        (context.checkpoints / "accept.json").write_text(json.dumps(found.model_dump()))
        assert cluster(accept="smaller").run(artifact, context) is artifact
        assert "undone" in context.journal.facts

    def test_a_rehearsal_trains_and_times_nothing(self) -> None:
        stage = Cluster(accept="smaller")
        assert stage.decides_by_engine
        assert not stage.untrained().decides_by_engine
        assert stage.untrained().recover.epochs == 0


class TestRefusals:
    def test_bits_and_clusters_exclude_each_other(self) -> None:
        with pytest.raises(ValidationError, match="give `bits` or `clusters`, not both"):
            Cluster(bits=4, clusters=16)

    @pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 9}, {"clusters": 257}, {"clusters": 1}])
    def test_codebooks_have_two_to_256_values(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValidationError):
            Cluster(**wrong)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize(
        "stage", [Prune(keep=Budget(macs=0.5)), Factorize(keep=Keep(energy=0.9)), Quantize()], ids=lambda s: s.stage
    )
    def test_a_stage_that_would_undo_it_cannot_follow(self, stage: Stage) -> None:
        assert "put `cluster` behind it" in str(stage.problem_behind([Cluster()]))
        assert stage.problem_behind([Train(epochs=1)]) is None

    def test_it_cannot_follow_quantize(self) -> None:
        assert "keep one of the two" in str(Cluster().problem_behind([Quantize()]))

    @pytest.mark.parametrize(
        "stage", [Cluster(), Train(epochs=1), DropBlocks(keep=Depth(macs=0.5))], ids=lambda s: s.stage
    )
    def test_those_that_keep_what_is_shared_may_follow(self, stage: Stage) -> None:
        assert stage.problem_behind([Cluster()]) is None
