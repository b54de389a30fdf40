"""Facts about whole runs on sound, from clips to a folder that tells a recording's class."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from potstill.export.bundle.manifest import Manifest
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.cli import main
from potstill.pipeline.progress import Silent
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.report import Report
from potstill.pipeline.runner import run
from tests.support.sounds import RATE, TONES, tone, write_npz, write_wav

ROOT = Path(__file__).parents[2]
FSDD = next((path for path in (ROOT / ".data/fsdd", ROOT.parent / "shared/data/fsdd") if path.is_dir()), None)

TONES_RECIPE = """
name: tones
data:
  {source: sound, path: ., rate: 4000, seconds: 0.3, front_end: {mels: 16}, augment: [time_shift, noise],
   views: 2, validation: 12, batch_size: 16}
teacher: {model: {name: resnet, depth: 8, width: 8}}
stages:
  - {stage: train, epochs: 8}
  - {stage: distill, student: {name: ds_cnn, width: 16, depth: 2, stride: 1}, epochs: 12, learning_rate: 0.1}
  - {stage: prune, keep: {macs: 0.7}, round_to: 4, recover: {epochs: 1}}
  - {stage: factorize, keep: {ratio: 0.6}, round_to: 4, recover: {epochs: 1}}
  - {stage: quantize, recover: {epochs: 1}}
targets:
  - {runtime: onnxruntime, device: cpu, precision: [int8], batch: [1], threads: 1}
goals: {max_accuracy_drop: 0.5}
"""


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A finished run: its folder, which has the recipe beside it, and its report."""
    folder = tmp_path_factory.mktemp("tones")
    write_npz(folder / "train.npz", 108, seed=0)
    write_npz(folder / "test.npz", 30, seed=1000)
    (folder / "recipe.yaml").write_text(TONES_RECIPE)
    recipe = load_recipe(folder / "recipe.yaml")
    report = run(recipe, directory=folder, folder=folder / "runs/it", progress=Silent())
    return folder / "runs/it", report


def constants(file: Path, prefix: str) -> dict[str, Any]:
    model = onnx.load(file)
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer if each.name.startswith(prefix)}


@pytest.mark.slow
class TestTones:
    def test_go_through_every_stage_to_an_int8_engine(self, tones: tuple[Path, Report]) -> None:
        _, report = tones
        assert [step.stage for step in report.steps] == ["train", "distill", "prune", "factorize", "quantize"]
        final = report.steps[-1].engine
        assert final.precision == "int8"
        assert final.parity.passed
        assert final.score.value > 0.8
        assert [goal.met for goal in report.goals] == [True]

    def test_have_one_front_end_that_no_stage_has_touched(self, tones: tuple[Path, Report]) -> None:
        folder, report = tones
        made = [Artifact.load(folder / step.name / "artifact") for step in report.steps]
        assert len({artifact.blueprint.front_end for artifact in made}) == 1
        front_ends = [constants(folder / step.engine.file, "front_end.") for step in report.steps]
        assert len(front_ends[0]) == 3
        for each in front_ends[1:]:
            assert list(each) == list(front_ends[0])
            for name, values in each.items():
                assert values.dtype == np.float32
                assert np.array_equal(values, front_ends[0][name])
        graph = onnx.load(folder / report.steps[-1].engine.file).graph
        operators = [node.op_type for node in graph.node if node.name.startswith("front_end")]
        assert sorted(operators) == ["Conv", "Conv", "Log", "Mul", "Mul", "Unsqueeze"]
        assert [value.name for value in graph.input] == ["audio"]

    def test_have_it_marked_as_in_float_on_purpose(self, tones: tuple[Path, Report]) -> None:
        audit = tones[1].steps[-1].engine.audit
        assert audit is not None
        floats = {layer.name: layer for layer in audit.layers if layer.precision == "float"}
        assert set(floats) == {"front_end", "front_end#1"}
        assert all("front end" in layer.reason and layer.on_purpose for layer in floats.values())

    def test_become_a_folder_that_tells_a_recordings_class(self, tones: tuple[Path, Report], tmp_path: Path) -> None:
        folder, report = tones
        assert main(["bundle", str(folder), "--output", str(tmp_path / "bundle")]) == 0
        manifest = Manifest.load(tmp_path / "bundle")
        told = manifest.inputs["audio"]
        assert (told.rate, told.sample_dtype, told.shape) == (RATE, "int16", (None, 1200))
        assert told.front_end is not None
        assert told.normalization is not None
        assert told.normalization.scale == (1 / 32768,)
        assert manifest.measured.score_from_bundle == report.steps[-1].engine.score
        for label, length in ((0, 700), (2, 1900)):
            clip = write_wav(tmp_path / "clip.wav", np.stack([tone(TONES[label], length, 77)] * 2, 1))
            done = subprocess.run(
                [sys.executable, "-I", tmp_path / "bundle" / "run.py", clip], capture_output=True, text=True, check=True
            )
            assert done.stdout == f"{label}\n"
        readme = (tmp_path / "bundle" / "README.md").read_text()
        assert "1200 samples at 4000 a second" in readme
        assert "log-mel map of 16 bands" in readme
        wrong = write_wav(tmp_path / "wrong.wav", tone(300, 900), rate=8000)
        refused = subprocess.run(
            [sys.executable, "-I", tmp_path / "bundle" / "run.py", wrong], capture_output=True, text=True, check=False
        )
        assert refused.returncode == 1
        assert "(8000, 2), and must be (4000, 2)" in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(FSDD is None, reason="the spoken digits are not here: ../shared/data/fsdd")
def test_the_recipe_for_spoken_digits_runs_on_a_few_of_them(tmp_path: Path) -> None:
    assert FSDD is not None
    for split, count in (("train", 200), ("test", 60)):
        with np.load(FSDD / f"{split}.npz") as archive:
            length, spacing = archive["length"], len(archive["y"]) // count
            chosen = np.arange(count) * spacing
            clips = np.split(archive["audio"], np.cumsum(length)[:-1])
            some: dict[str, Any] = {"audio": np.concatenate([clips[at] for at in chosen]), "length": length[chosen]}
            np.savez(tmp_path / f"{split}.npz", **some, y=archive["y"][chosen])
    brief = [
        *(f"data.{key}" for key in (f"path={tmp_path}", "validation=40", "views=1")),
        *("teacher.model={name: resnet, depth: 8, width: 8}", "stages.train.epochs=1"),
        *("stages.distill.epochs=1", "stages.distill.student={name: ds_cnn, width: 16, depth: 1}"),
        *("stages.quantize.recover.epochs=0", "targets[0].precision=[int8]", "goals={}"),
    ]
    recipe = load_recipe(ROOT / "configs/fsdd.yaml", brief)
    # Each step's engine takes seconds to make; the tones above go through the stages in between.
    stages = tuple(stage for stage in recipe.stages if stage.stage in ("train", "distill", "quantize"))
    recipe = recipe.model_copy(update={"stages": stages})
    report = run(recipe, directory=tmp_path, folder=tmp_path / "runs/fsdd", progress=Silent())
    assert report.data == (
        f"{tmp_path.name}, 1 s at 8,000 Hz (2 of 260 clips cropped), 8000: "
        "160 train, 60 test, 40 validation, 10 classes"
    )
    assert len(report.steps) == 3
    assert report.steps[-1].engine.precision == "int8"
    assert report.steps[-1].engine.score.count == 60
