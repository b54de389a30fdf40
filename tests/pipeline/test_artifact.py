"""Facts about saving and loading artifacts."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ArtifactError

NewArtifact = Callable[..., Artifact]


class TestSaving:
    def test_comes_back_with_the_same_outputs(self, new_artifact: NewArtifact, data: Dataset, tmp_path: Path) -> None:
        artifact = replace(new_artifact(), lineage=("train", "distill"))
        artifact.save(tmp_path, data.example())
        reloaded = Artifact.load(tmp_path)
        assert reloaded.lineage == ("train", "distill")
        assert reloaded.blueprint == artifact.blueprint
        inputs = data.example(4)
        assert torch.equal(reloaded.model(*inputs.values()), artifact.model(*inputs.values()))

    def test_holds_no_pickle(self, new_artifact: NewArtifact, data: Dataset, tmp_path: Path) -> None:
        new_artifact().save(tmp_path, data.example())
        assert {path.name for path in tmp_path.iterdir()} == {"blueprint.json", "model.safetensors"}

    def test_refuses_a_model_with_state_outside_its_parameters(
        self, new_artifact: NewArtifact, data: Dataset, tmp_path: Path
    ) -> None:
        artifact = new_artifact()

        def shifted(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
            return output + 1

        artifact.model.register_forward_hook(shifted)
        with pytest.raises(ArtifactError, match="differ by up to 1"):
            artifact.save(tmp_path, data.example())


class TestLoading:
    def test_works_in_a_fresh_process(self, new_artifact: NewArtifact, data: Dataset, tmp_path: Path) -> None:
        artifact = new_artifact(seed=9)
        artifact.save(tmp_path, data.example())
        root = Path(__file__).parents[2]
        script = (
            f"import runpy; runpy.run_path({str(root / 'conftest.py')!r})\n"
            "from pathlib import Path\nimport torch\nfrom potstill.pipeline.artifact import Artifact\n"
            f"artifact = Artifact.load(Path({str(tmp_path)!r}))\n"
            "print(float(artifact.model(torch.ones(2, 1, 16, 16)).sum().detach()))"
        )
        printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
        assert float(printed) == pytest.approx(float(artifact.model(torch.ones(2, 1, 16, 16)).sum().detach()), rel=1e-5)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="nowhere holds no readable artifact"):
            Artifact.load(tmp_path / "nowhere")

    def test_a_newer_version_is_refused(self, new_artifact: NewArtifact, data: Dataset, tmp_path: Path) -> None:
        new_artifact().save(tmp_path, data.example())
        header = tmp_path / "blueprint.json"
        header.write_text(header.read_text().replace('"version": 1', '"version": 99', 1))
        with pytest.raises(ArtifactError, match="newer potstill"):
            Artifact.load(tmp_path)

    def test_truncated_weights_are_refused(self, new_artifact: NewArtifact, data: Dataset, tmp_path: Path) -> None:
        new_artifact().save(tmp_path, data.example())
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ArtifactError, match="no readable artifact"):
            Artifact.load(tmp_path)
