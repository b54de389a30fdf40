"""Facts about whole runs of regressions and of tasks that users write."""

from pathlib import Path

import pytest

from potstill.export.measurement import MeanScore
from potstill.pipeline.errors import PotstillError
from potstill.pipeline.metric import RMSE
from potstill.pipeline.preflight import check
from potstill.pipeline.progress import Silent
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.report import Report
from potstill.pipeline.runner import run

MODELS = """
import torch
from torch import nn
from torch.nn import functional


def block(inner, outer):
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())


class UNet(nn.Module):
    def __init__(self, width, num_outputs):
        super().__init__()
        self.first, self.bottom = block(1, width), block(width, 2 * width)
        self.up, self.join = nn.ConvTranspose2d(2 * width, width, 2, 2), block(2 * width, width)
        self.out = nn.Conv2d(width, num_outputs, 1)

    def forward(self, image):
        first = self.first(image)
        up = self.up(self.bottom(functional.max_pool2d(first, 2)))
        return self.out(self.join(torch.cat([up, first], 1)))


def make(num_outputs, width: int = 16):
    return UNet(width, num_outputs)
"""

DATA = """
import numpy as np


def make():
    draws = np.random.default_rng(0)
    clean = draws.normal(0, 1, (130, 1, 4, 4)).repeat(4, 2).repeat(4, 3).astype(np.float32)
    noisy = clean + draws.normal(0, 0.7, clean.shape).astype(np.float32)
    return {"train": (noisy[:96], clean[:96]), "test": (noisy[96:], clean[96:])}
"""

DENOISE = """
name: denoise
task: regression
precision: fp32
data: {source: "my_data.py:make", batch_size: 16, validation: 16}
teacher: {model: "my_models.py:make"}
stages:
  - {stage: train, epochs: 2}
  - {stage: distill, student: {from: teacher, width: 0.5}, epochs: 1}
  - {stage: prune, keep: {macs: 0.8}, round_to: 4, scope: sensitivity}
  - {stage: factorize, keep: {energy: 0.9}}
  - {stage: quantize}
targets:
  - {runtime: onnxruntime, device: cpu, precision: [int8], batch: [1], min_int8_share: 0.5}
goals: {max_worsening: 5}
"""

TASK = """
class Smooth:
    metric = "margin"
    higher_is_better = True

    def loss(self, outputs, target):
        import torch
        return torch.nn.functional.cross_entropy(outputs, target, label_smoothing=0.1)

    def values(self, outputs, target):
        probabilities = outputs.softmax(1)
        return probabilities.gather(1, target[:, None])[:, 0]


def make():
    return Smooth()
"""

DIGITS = """
name: own
task: my_task.py:make
precision: fp32
data: {source: digits, size: 8, batch_size: 64}
teacher: {model: {name: resnet, depth: 8, width: 8}}
stages:
  - {stage: train, epochs: 1}
  - {stage: quantize, recover: {epochs: 0}}
targets:
  - {runtime: onnxruntime, device: cpu, precision: [int8], batch: [1]}
goals: {max_worsening: 0.5}
"""


def written(folder: Path, **files: str) -> Path:
    """The files of a user's folder; returns the recipe's."""
    for name, text in files.items():
        (folder / (f"{name}.yaml" if name == "recipe" else f"{name}.py")).write_text(text)
    return folder / "recipe.yaml"


def ran(recipe: Path, until: str | None = None) -> Report:
    folder = recipe.parent / "runs" / "it"
    return run(load_recipe(recipe), directory=recipe.parent, folder=folder, progress=Silent(), until=until)


def checked(recipe: Path) -> list[str]:
    folder = recipe.parent / "runs" / "it"
    return check(load_recipe(recipe), directory=recipe.parent, folder=folder, progress=Silent())


@pytest.mark.slow
class TestARegression:
    def test_goes_through_every_stage_to_an_int8_engine_that_is_judged_by_its_error(self, tmp_path: Path) -> None:
        recipe = written(tmp_path, recipe=DENOISE, my_models=MODELS, my_data=DATA)
        assert any("targets 1x16x16" in finding for finding in checked(recipe))
        report = ran(recipe)
        assert [step.stage for step in report.steps] == ["train", "distill", "prune", "factorize", "quantize"]
        for step in report.steps:
            assert isinstance(step.engine.score, MeanScore)
            assert step.engine.score.metric == RMSE
            assert step.engine.score.count == 34
        final = report.steps[-1]
        assert final.engine.precision == "int8"
        assert final.engine.parity.agreement is None
        assert final.change is not None
        assert final.change == report.earned[-1].score
        # An engine that is told the noise away is nearer to the clean image than the noise is.
        assert report.steps[0].engine.score.value < 0.7
        assert {"loss_rise", "RMSE"} <= set(report.steps[2].facts["sensitivity"][0])  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue, reportOptionalSubscript] # JSON
        assert "logits" in report.steps[1].curve[-1].terms
        (goal,) = report.goals
        assert (goal.goal, goal.met) == ("max_worsening", True)
        again = ran(recipe)
        assert all(step.reused for step in again.steps)
        assert [step.change for step in again.steps] == [step.change for step in report.steps]

    def test_of_a_model_that_gives_another_shape_is_refused_before_it_trains(self, tmp_path: Path) -> None:
        small = MODELS.replace("return self.out(self.join(torch.cat([up, first], 1)))", "return self.out(first)[:, 0]")
        recipe = written(tmp_path, recipe=DENOISE, my_models=small, my_data=DATA)
        with pytest.raises(PotstillError, match=r"outputs of shape 2x16x16 for .*; they must be 2x1x16x16, the batch"):
            checked(recipe)


@pytest.mark.slow
class TestTheUsersOwn:
    def test_is_trained_and_judged_as_it_says(self, tmp_path: Path) -> None:
        recipe = written(tmp_path, recipe=DIGITS, my_task=TASK)
        report = ran(recipe)
        first, last = (step.engine.score for step in report.steps)
        assert report.metric.name == "margin"
        assert 0.1 < first.value <= 1
        assert report.classes == tuple("0123456789")
        assert report.steps[-1].change is not None
        assert report.steps[-1].change.value == pytest.approx(last.value - first.value)
        measured = (tmp_path / "runs" / "it" / "01-train" / "onnxruntime-cpu-fp32-measured" / "values.npy").stat()
        (tmp_path / "my_task.py").write_text(TASK.replace("probabilities.gather", "2 * probabilities.gather"))
        again = ran(recipe, until="train")
        assert not again.steps[0].reused
        assert again.steps[0].engine.score.value == pytest.approx(2 * first.value, rel=1e-6)
        assert measured.st_size > 359 * 8

    def test_that_does_not_take_the_models_outputs_is_refused_before_it_trains(self, tmp_path: Path) -> None:
        recipe = written(tmp_path, recipe=DIGITS, my_task=TASK.replace("[:, 0]", ""))
        with pytest.raises(PotstillError, match=r"`values` returned a tensor of shape \(2, 1\); it must be of shape"):
            checked(recipe)
