"""Facts about 2:4 sparsity."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Sparsify as SparsifyEdit
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError, RecipeError, StageError
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.sparsity import holds, kept, obstacle
from potstill.pipeline.teacher import Teacher
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.sparsify import Sparsify
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

METADATA = OnnxMetadata(recipe_hash="", stage="test", classes=("a", "b", "c", "d"))


def weights(artifact: Artifact) -> dict[str, Tensor]:
    return {path: artifact.model.get_submodule(path).weight.detach() for path in artifact.blueprint.sparse_layers}


class TestPattern:
    def test_the_two_largest_of_every_four_inputs_stay(self) -> None:
        weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.25, 0.5, -0.75, 0.0]])
        assert (weight * kept(weight)).tolist() == [[0.0, -4.0, 3.0, 0.0, 0.0, 0.5, -0.75, 0.0]]

    def test_of_a_kernel_holds_at_each_position_by_itself(self) -> None:
        weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        sparse = weight * kept(weight)
        assert holds(sparse)
        assert not holds(weight)
        assert (sparse != 0).sum() * 2 == weight.numel()
        four = sparse[2, 4:8, 1, 2]
        assert set(four[four != 0].tolist()) == set(weight[2, 4:8, 1, 2].tolist()) & set(four.tolist())

    def test_equal_magnitudes_still_leave_two(self) -> None:
        assert kept(torch.ones(3, 4)).sum(1).tolist() == [2, 2, 2]

    @pytest.mark.parametrize(
        ("layer", "reason"),
        [
            (nn.Conv2d(8, 8, 3), None),
            (nn.Linear(12, 5), None),
            (nn.Conv2d(8, 8, 3, groups=8), "grouped"),
            (nn.Conv2d(3, 8, 3), "3 inputs do not come in fours"),
            (nn.ConvTranspose2d(8, 8, 2), "neither a convolution nor a linear layer"),
        ],
        ids=str,
    )
    def test_is_for_inputs_that_come_in_fours(self, layer: nn.Module, reason: str | None) -> None:
        found = obstacle(layer)
        assert found is None if reason is None else reason in str(found)


class TestSparsify:
    def test_the_zeros_outlast_recovery_quantization_and_its_training(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset
    ) -> None:
        artifact = new_artifact()
        teacher = Teacher(artifact)
        sparse = Sparsify(recover=Recovery(epochs=2)).run(artifact, new_context(teacher, step="01-sparsify"))
        trained = weights(sparse)
        given = [artifact.model.get_submodule(path).weight.detach() for path in trained]
        assert trained
        assert all(holds(weight) for weight in trained.values())
        moved = [weight - (weight != 0) * before for weight, before in zip(trained.values(), given, strict=True)]
        assert max(float(change.abs().max()) for change in moved) > 0
        quantized = Quantize(recover=Recovery(epochs=1)).run(sparse, new_context(teacher, step="02-quantize"))
        assert all(holds(weight) for weight in weights(quantized).values())
        stored = {
            tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in exported(quantized, "int8", data.example(), METADATA).graph.initializer
        }
        codes = [tensor for tensor in stored.values() if tensor.dtype.name == "int8" and tensor.ndim == 4]
        assert sum(holds(torch.from_numpy(array.copy())) for array in codes) == len(trained) - 1  # one is linear

    def test_a_layer_whose_inputs_do_not_come_in_fours_is_named(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        artifact = Sparsify(recover=Recovery(epochs=0), ignore=("layer3.*",)).run(new_artifact(), context)
        dense = context.journal.facts["dense layers"]
        assert isinstance(dense, list)
        assert "conv1: its 1 inputs do not come in fours" in dense
        assert "layer3.0.conv1: named in `ignore`" in dense
        assert "layer3.0.conv1" not in artifact.blueprint.sparse_layers
        assert context.journal.facts["zeros"] == 0.5

    def test_the_given_artifact_stays_dense(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact()
        before = {name: tensor.clone() for name, tensor in artifact.model.state_dict().items()}
        Sparsify(recover=Recovery(epochs=0)).run(artifact, new_context())
        assert all(torch.equal(before[name], tensor) for name, tensor in artifact.model.state_dict().items())

    def test_a_network_without_such_layers_is_refused(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        with pytest.raises(StageError, match=r"no layer can hold the pattern: conv1 .*Mend: drop the stage"):
            Sparsify(ignore=("*",)).run(new_artifact(), new_context())

    def test_reloads_with_its_zeros_and_its_mark(
        self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset, tmp_path: Path
    ) -> None:
        artifact = Sparsify(recover=Recovery(epochs=0)).run(new_artifact(), new_context())
        artifact.save(tmp_path / "saved", data.example())
        again = Artifact.load(tmp_path / "saved")
        assert again.blueprint.sparse_layers == artifact.blueprint.sparse_layers
        assert all(holds(weight) for weight in weights(again).values())


class TestExport:
    def test_names_the_sparse_layers(self, new_artifact: NewArtifact, new_context: NewContext, data: Dataset) -> None:
        artifact = Sparsify(recover=Recovery(epochs=0)).run(new_artifact(), new_context())
        model = exported(artifact, "fp32", data.example(), METADATA)
        notes = {entry.key: entry.value for entry in model.metadata_props}
        mark: Any = json.loads(notes["potstill.sparsity"])
        assert mark == {"pattern": "2:4", "layers": list(artifact.blueprint.sparse_layers)}

    def test_says_nothing_of_dense_networks(self, new_artifact: NewArtifact, data: Dataset) -> None:
        model = exported(new_artifact(), "fp32", data.example(), METADATA)
        assert "potstill.sparsity" not in {entry.key for entry in model.metadata_props}

    def test_refuses_a_mark_that_the_weights_do_not_keep(self, new_artifact: NewArtifact, data: Dataset) -> None:
        dense = new_artifact()
        edit = SparsifyEdit(layers=("layer1.0.conv1",))
        marked = Artifact(model=dense.model, blueprint=dense.blueprint.with_edit(edit))
        with pytest.raises(ExportError, match=r"`layer1\.0\.conv1` is recorded as 2:4 sparse"):
            exported(marked, "fp32", data.example(), METADATA)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (
            "{stage: prune, keep: {macs: 0.5}}",
            "`prune` does not keep the zeros of `sparsify`; put `sparsify` behind it",
        ),
        ("{stage: cluster}", "`cluster` does not keep the zeros of `sparsify`; keep one of the two"),
        ("{stage: quantize, scheme: int4_weights}", "the grids of int4_weights do not hold the zeros of `sparsify`"),
    ],
)
def test_a_stage_that_would_lose_the_zeros_is_refused(stage: str, problem: str, tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(
        "name: a\ndata: {source: digits}\nteacher: {model: {name: resnet, depth: 8}}\n"
        f"stages:\n  - {{stage: train, epochs: 1}}\n  - stage: sparsify\n  - {stage}\n"
        "targets: [{runtime: onnxruntime, precision: [fp32, int8, int4_weights]}]\n"
    )
    with pytest.raises(RecipeError, match=f"a.yaml:7: stages.2.: {problem}"):
        load_recipe(recipe)
