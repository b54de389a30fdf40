"""Facts about what can be done with a run once it is over: more engines, and folders to deploy."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.export.bundle.manifest import Manifest
from potstill.pipeline.cli import main
from tests.support.command_line import command

DATA = """
import numpy as np

def make():
    draws = np.random.default_rng(0)
    target = draws.integers(0, 4, 360)
    images = draws.integers(0, 120, (360, 2, 16, 16)).astype(np.uint8)
    for image, label in zip(images, target):
        image[0, 4 * label : 4 * label + 4] += 60
    return {"train": (images[:300], target[:300]), "test": (images[300:], target[300:])}
"""
MODELS = """
from torch import nn

def make_teacher(num_classes):
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
RECIPE = """
name: tiny
precision: fp32
data: {source: "my_data.py:make", batch_size: 50, normalize: dataset, license: "mine, CC0"}
teacher: {model: "my_models.py:make_teacher"}
stages:
  - {stage: train, epochs: 4}
  - {stage: quantize, calibration: {samples: 64}, recover: {epochs: 0}}
targets:
  - {runtime: onnxruntime, precision: [int8]}
"""
FLOAT = "{runtime: onnxruntime, precision: [fp32]}"
TWO_THREADS = "{runtime: onnxruntime, precision: [fp32], threads: 2, offline: {max_batch: 2}}"

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recipe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder with a finished run in it."""
    folder = tmp_path_factory.mktemp("deploying")
    for name, text in (("my_data.py", DATA), ("my_models.py", MODELS), ("tiny.yaml", RECIPE)):
        (folder / name).write_text(text)
    assert main(["run", str(folder / "tiny.yaml"), "--runs-dir", str(folder / "runs")]) == 0
    return folder


@pytest.fixture
def run(recipe_dir: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be changed at will; the recipe's folder stays where it was."""
    return Path(shutil.copytree(recipe_dir / "runs" / "tiny", tmp_path / "tiny"))


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


class TestBundle:
    def test_has_the_runs_accuracy_and_an_example_that_reaches_it(
        self, recipe_dir: Path, tmp_path: Path, capsys: Output
    ) -> None:
        output = tmp_path / "deploy"
        assert main(["bundle", str(recipe_dir / "runs" / "tiny"), "--output", str(output), "--triton"]) == 0
        told = capsys.readouterr()
        assert f"bundle: {output}" in told.out
        assert "config.pbtxt" in told.err
        manifest = Manifest.load(output)
        final = report(recipe_dir / "runs" / "tiny")["engines"][-1]
        assert manifest.measured.score_from_bundle is not None
        assert manifest.measured.score_from_bundle.model_dump() == final["score"]
        assert manifest.attribution.data_license == "mine, CC0"
        assert manifest.inputs["image"].sample_dtype == "uint8"

        names: dict[str, Any] = {}
        exec(DATA, names)
        images, labels = names["make"]()["test"]
        np.save(tmp_path / "test.npy", images)
        example = [sys.executable, "-I", str(output / "run.py"), str(tmp_path / "test.npy")]
        done = subprocess.run(example, capture_output=True, text=True, check=True)
        assert int((np.array(done.stdout.split(), int) == labels).sum()) == final["score"]["correct"]

    def test_an_unknown_engine_is_told_with_the_nearest(self, run: Path, tmp_path: Path, capsys: Output) -> None:
        assert main(["bundle", str(run), "--output", str(tmp_path / "x"), "--engine", "onnxruntime cpu int3"]) == 2
        assert "has no engine `onnxruntime cpu int3`; did you mean `onnxruntime cpu int8`?" in capsys.readouterr().err

    @pytest.mark.parametrize("harm", ["damaged", "gone"])
    def test_a_harmed_engine_is_refused(self, harm: str, run: Path, tmp_path: Path, capsys: Output) -> None:
        engine = run / "02-quantize" / "onnxruntime-cpu-int8" / "model.onnx"
        engine.write_bytes(engine.read_bytes()[:-1]) if harm == "damaged" else engine.unlink()
        assert main(["bundle", str(run), "--output", str(tmp_path / "x")]) == 1
        what = "was changed or damaged since it was written" if harm == "damaged" else "is gone"
        assert f"model.onnx {what}; `potstill run`" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()

    def test_other_data_than_the_runs_are_refused(self, run: Path, tmp_path: Path, capsys: Output) -> None:
        moved = tmp_path / "moved"
        moved.mkdir()
        (moved / "my_data.py").write_text(DATA.replace("default_rng(0)", "default_rng(1)"))
        arguments = ["bundle", str(run), "--output", str(tmp_path / "x"), "--recipe-dir", str(moved)]
        assert main(arguments) == 1
        assert "the run was measured on other data than there are now" in capsys.readouterr().err

    def test_data_that_moved_are_found_by_the_folder_that_is_given(
        self, run: Path, recipe_dir: Path, tmp_path: Path, capsys: Output
    ) -> None:
        origin = json.loads((run / "origin.json").read_text())
        (run / "origin.json").write_text(json.dumps({**origin, "directory": str(tmp_path / "gone")}))
        assert main(["bundle", str(run), "--output", str(tmp_path / "x")]) == 1
        error = capsys.readouterr().err
        assert "there is no file" in error
        assert f"The run's recipe lay in {tmp_path / 'gone'}" in error
        arguments = ["bundle", str(run), "--output", str(tmp_path / "x"), "--recipe-dir", str(recipe_dir)]
        assert main(arguments) == 0


class TestExport:
    def test_further_engines_stand_in_the_report_and_are_bundled_like_the_runs_own(
        self, run: Path, tmp_path: Path, capsys: Output
    ) -> None:
        before = report(run)
        assert main(["export", str(run), "--target", TWO_THREADS]) == 0
        first = capsys.readouterr()
        assert "02-quantize: measures onnxruntime cpu 2 threads fp32" in first.err
        assert "onnxruntime cpu 2 threads fp32" in first.out
        after = report(run)
        *kept, added = after["engines"]
        assert (kept, after["steps"]) == (before["engines"], before["steps"])
        assert added["target"] == "onnxruntime cpu 2 threads fp32"
        assert added["parity"]["passed"]
        assert added["settings"]["threads"] == 2
        assert [point["batch"] for point in added["offline"]["sweep"]] == [1, 2]
        assert added["latency"][0]["candidate"]["samples"] >= 10
        assert (run / added["file"]).is_file()
        assert "2 threads fp32" in (run / "report.html").read_text()

        assert main(["export", str(run), "--target", TWO_THREADS]) == 0
        assert capsys.readouterr().err == ""
        assert report(run) == after

        arguments = ["bundle", str(run), "--output", str(tmp_path / "x"), "--engine", added["target"]]
        assert main(arguments) == 0
        manifest = Manifest.load(tmp_path / "x")
        assert (manifest.engine.threads, manifest.provenance.step) == (2, "02-quantize")

    def test_an_earlier_step_is_named_with_its_engine(self, run: Path, capsys: Output) -> None:
        arguments = ["export", str(run), "--step", "train", "--target"]
        assert main([*arguments, "{runtime: onnxruntime}"]) == 0
        assert report(run)["engines"][-1]["target"] == "onnxruntime cpu fp32 of 01-train"
        assert main([*arguments, "{runtime: onnxruntime, precision: [int8]}"]) == 2
        assert "onnxruntime cpu has int8, but 01-train is not quantized" in capsys.readouterr().err

    def test_a_harmed_artifact_is_refused(self, run: Path, capsys: Output) -> None:
        weights = run / "02-quantize" / "artifact" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        before = report(run)
        assert main(["export", str(run), "--target", FLOAT]) == 1
        assert "model.safetensors was changed or damaged since it was written" in capsys.readouterr().err
        assert report(run) == before

    def test_a_call_that_was_killed_goes_on(self, run: Path, capsys: Output) -> None:
        export = command("export", run, "--target", FLOAT)
        with subprocess.Popen(export, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ) as process:
            while not (run / "02-quantize" / "onnxruntime-cpu-fp32").exists():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert len(report(run)["engines"]) == 1
        assert main(["export", str(run), "--target", FLOAT]) == 0
        told = capsys.readouterr().err
        assert "exports" not in told
        assert "02-quantize: measures onnxruntime cpu fp32" in told
        assert [engine["target"] for engine in report(run)["engines"]] == [
            "onnxruntime cpu int8",
            "onnxruntime cpu fp32",
        ]

    def test_another_machine_than_the_runs_is_told(self, run: Path) -> None:
        changed = report(run)
        changed["machine"]["cpu_model"] = "another"
        (run / "report.json").write_text(json.dumps(changed))
        assert main(["export", str(run), "--step", "train", "--target", FLOAT]) == 0
        added = report(run)["engines"][-1]
        assert added["machine"]["cpu_model"] != "another"
        assert added["remarks"][-1].startswith("measured elsewhere than the rest of this run: cpu model ")
        assert "(the run: another)" in (run / "report.md").read_text()
