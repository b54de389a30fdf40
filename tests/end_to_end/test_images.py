"""Facts about whole runs on images from files, from the folder to the bundle that decodes them itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

from potstill.export.bundle.manifest import Manifest
from potstill.pipeline.cli import main
from potstill.pipeline.images.decoding import decoded
from potstill.pipeline.report import Report
from tests.support.pictures import CLASSES, picture_folder

RECIPE = """
name: pets
precision: fp32
data:
  source: image_folder
  path: pets
  size: 16
  resize: 18
  augment: [random_resized_crop, flip]
  validation: 6
  batch_size: 10
  workers: 2
teacher: {model: {name: resnet, depth: 8, width: 8}}
stages:
  - {stage: train, epochs: 1}
  - {stage: distill, student: {from: teacher, width: 0.5}, epochs: 1}
  - {stage: quantize, calibration: {samples: 16}, recover: {epochs: 0}}
targets:
  - {runtime: onnxruntime, precision: [int8], batch: [1]}
"""

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its images."""
    folder = tmp_path_factory.mktemp("images")
    picture_folder(folder / "pets", "train", "test", each=10)
    (folder / "pets.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_a_folder_of_images_becomes_a_bundle_that_decodes_images(folder: Path, capsys: Output) -> None:
    arguments = [str(folder / "pets.yaml"), "--runs-dir", str(folder / "runs")]
    assert main(["run", *arguments]) == 0
    run, bundle = folder / "runs" / "pets", folder / "bundle"
    report = Report.model_validate_json((run / "report.json").read_text())
    assert report.classes == CLASSES
    assert [step.engine.precision for step in report.steps] == ["fp32", "fp32", "int8"]
    assert main(["bundle", str(run), "--output", str(bundle)]) == 0

    manifest = Manifest.load(bundle)
    assert manifest.labels == CLASSES
    assert manifest.measured.score_from_bundle == manifest.measured.score
    decoding = manifest.inputs["image"].decoding
    assert decoding is not None
    assert (decoding.resize, decoding.size) == (18, 16)
    assert {"images.py", "run.py"} <= set(manifest.files)
    assert "pillow==" in (bundle / "requirements.txt").read_text()

    files = sorted((folder / "pets" / "test").rglob("*.*g"))
    from_files = printed(bundle, *files)
    right = sum(told == file.parent.name for told, file in zip(from_files, files, strict=True))
    assert right / len(files) == pytest.approx(manifest.measured.score.value)
    np.savez(folder / "pixels.npz", image=np.stack([decoded(file, 18, 16) for file in files]))
    assert printed(bundle, folder / "pixels.npz") == from_files

    # Another number of workers, or pixels that are mapped from a file, are no reason to train again.
    capsys.readouterr()
    changes = ("data.workers=1", f"data.cache={folder / 'cache'}")
    assert main(["run", *arguments, *(word for change in changes for word in ("--set", change))]) == 0
    again = json.loads((run / "report.json").read_text())
    assert all(step["reused"] for step in again["steps"])


def printed(bundle: Path, *arguments: Path) -> list[str]:
    """What the example prints, started apart from everything of ours."""
    command = [sys.executable, "-I", str(bundle / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("verb", ["check", "run"])
def test_damaged_images_are_told_before_anything_is_trained(
    verb: str, folder: Path, tmp_path: Path, capsys: Output
) -> None:
    shutil.copytree(folder / "pets", tmp_path / "pets")
    shutil.copyfile(folder / "pets.yaml", tmp_path / "pets.yaml")
    (tmp_path / "pets" / "train" / "dog" / "3.jpg").write_bytes(b"no image")
    (tmp_path / "pets" / "test" / "owl" / "0.png").write_bytes(b"")
    assert main([verb, str(tmp_path / "pets.yaml"), "--runs-dir", str(tmp_path / "runs")]) == 1
    told = capsys.readouterr().err
    assert "potstill: 2 of 60 images cannot be decoded:" in told
    assert "train/dog/3.jpg: is no image that Pillow can read" in told
    assert "test/owl/0.png: is empty" in told
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
