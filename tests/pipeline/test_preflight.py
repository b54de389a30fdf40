"""Facts about what `potstill check` finds before any training."""

from pathlib import Path

import pytest

from potstill.pipeline.errors import ModelError, PotstillError, StageError
from potstill.pipeline.preflight import check
from potstill.pipeline.progress import Silent
from potstill.pipeline.recipe import load_recipe

MODELS = """
import torch
from torch import nn


def wrong_channels(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))


class Branching(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(256, num_classes)

    def forward(self, image):
        flat = image.flatten(1)
        return self.linear(flat if flat.sum() > 0 else -flat)


def branching(num_classes):
    return Branching(num_classes)


def one_layer(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))


def sound(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""

RECIPE = """
name: checked
data: {{source: digits, size: 16}}
teacher: {{model: "models.py:{model}"}}
stages: [{{stage: train, epochs: 100}}{more}]
targets: [{{runtime: onnxruntime, device: cpu, precision: [{precision}]}}]
"""


def checked(folder: Path, model: str, more: str = "", precision: str = "fp32") -> list[str]:
    (folder / "models.py").write_text(MODELS)
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, more=more, precision=precision))
    recipe = load_recipe(folder / "recipe.yaml")
    return check(recipe, directory=folder, folder=folder / "runs", progress=Silent())


class TestCheck:
    def test_a_sound_recipe_is_rehearsed_to_its_engines_and_leaves_nothing_behind(self, tmp_path: Path) -> None:
        more = ", {stage: prune, keep: {macs: 0.7}}, {stage: quantize, recover: {epochs: 50}}"
        findings = checked(tmp_path, "sound", more, "fp32, int8")
        assert any(finding.startswith("02-prune:") for finding in findings)
        assert "export: onnxruntime cpu int8 can be built" in findings
        assert not (tmp_path / "runs").exists()

    def test_a_model_that_does_not_run_on_the_data_is_named_with_the_shapes(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"does not run on the data's inputs \(image 2x1x16x16\)"):
            checked(tmp_path, "wrong_channels")

    def test_a_model_that_cannot_be_exported_is_found_and_the_mend_named(self, tmp_path: Path) -> None:
        with pytest.raises(PotstillError, match=r"Mend: no Python branches on tensor values"):
            checked(tmp_path, "branching")

    def test_a_model_without_a_prunable_layer_is_found(self, tmp_path: Path) -> None:
        with pytest.raises(StageError, match="no layer"):
            checked(tmp_path, "one_layer", ", {stage: prune, keep: {macs: 0.5}}")
