"""Facts about a bundle's folder: what is in it, that it runs without potstill, and what becomes of it in trouble."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from potstill.export.bundle.manifest import Manifest
from potstill.export.bundle.recheck import outputs_of
from potstill.export.bundle.writing import Contents, write_bundle
from potstill.export.measurement import Accuracy
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError, RunFolderError, UsageError
from potstill.pipeline.fingerprints import sha256_by_file
from potstill.pipeline.progress import Silent


def written(contents: Contents, output: Path, *, triton: bool = False, replace: bool = False) -> Manifest:
    return write_bundle(contents, output, triton=triton, replace=replace, progress=Silent())


@pytest.fixture(scope="module")
def bundle(contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nothing is changed in."""
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    written(contents, folder)
    return folder


def printed(bundle: Path, *arguments: Path) -> list[str]:
    """What the example prints, started apart from everything of ours."""
    command = [sys.executable, "-I", str(bundle / "run.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


class TestManifest:
    def test_loads_as_it_was_written_and_holds_the_hash_of_every_other_file(self, bundle: Path) -> None:
        manifest = Manifest.load(bundle)
        hashes = sha256_by_file(bundle)
        del hashes["manifest.json"]
        assert manifest.files == hashes
        assert set(hashes) == {"README.md", "run.py", "requirements.txt", "model.onnx"}

    def test_says_what_is_to_be_done_with_samples(self, bundle: Path, data: Dataset) -> None:
        (image,) = Manifest.load(bundle).inputs.values()
        assert (image.shape, image.dtype, image.sample_dtype) == ((None, 1, 16, 16), "float32", "float32")
        assert image.normalization is not None
        raw, ready = data.test.raw["image"].numpy(), data.example(len(data.test))["image"].numpy()
        by_words = (raw - image.normalization.mean[0]) / image.normalization.deviation[0]
        assert np.allclose(by_words, ready, atol=1e-5)
        exactly = raw * np.float32(image.normalization.scale[0]) + np.float32(image.normalization.shift[0])
        assert (exactly == ready).all()

    def test_holds_both_measurements_of_the_score(self, bundle: Path, contents: Contents) -> None:
        measured = Manifest.load(bundle).measured
        assert measured.score == measured.score_from_bundle == contents.engine.score
        assert measured.machine == contents.machine

    def test_a_folder_that_is_none_of_a_bundle_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is no bundle"):
            Manifest.load(tmp_path)


class TestExample:
    def test_runs_on_zeros_without_potstill(self, bundle: Path) -> None:
        (label,) = printed(bundle)
        assert label in Manifest.load(bundle).labels

    @pytest.mark.parametrize("ending", [".npz", ".npy"])
    def test_gives_the_classes_that_make_up_the_score(
        self, ending: str, bundle: Path, contents: Contents, data: Dataset, tmp_path: Path
    ) -> None:
        file, images = tmp_path / f"samples{ending}", data.test.raw["image"].numpy()
        np.savez(file, image=images) if ending == ".npz" else np.save(file, images)
        labels = printed(bundle, file)
        right = sum(
            data.classes.index(label) == int(wanted) for label, wanted in zip(labels, data.test.target, strict=True)
        )
        assert contents.engine.score == Accuracy(correct=right, count=len(labels))

    def test_refuses_samples_of_another_type(self, bundle: Path, data: Dataset, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", data.test.raw["image"].numpy().astype(np.uint8))
        command = [sys.executable, "-I", str(bundle / "run.py"), str(tmp_path / "a.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "image: samples are float32, given were uint8" in done.stderr

    def test_needs_the_versions_that_were_measured(self, bundle: Path, contents: Contents) -> None:
        libraries = contents.machine.libraries
        wanted = [f"numpy=={libraries['numpy']}", f"onnxruntime=={libraries['onnxruntime']}"]
        assert (bundle / "requirements.txt").read_text().split() == wanted

    @pytest.mark.parametrize(
        ("spoiled", "words"),
        [("run.py", "import of potstill halted"), ("model.onnx", "INVALID_PROTOBUF")],
    )
    def test_that_fails_or_needs_potstill_is_told_with_its_last_words(
        self, spoiled: str, words: str, bundle: Path, data: Dataset, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(bundle, tmp_path / "spoiled"))
        content = (folder / spoiled).read_bytes()
        (folder / spoiled).write_bytes(b"import potstill\n" + content)
        with pytest.raises(ExportError, match=rf"run\.py failed in a process of its own[\s\S]*{words}"):
            outputs_of(folder, data, 64)


class TestReadme:
    def test_tells_licences_as_given_and_where_nothing_was_said(self, bundle: Path) -> None:
        text = (bundle / "README.md").read_text()
        assert "Data: bars. Licence: CC0." in text
        assert "Teacher: resnet. Licence of its weights: nothing was said." in text
        assert "(samples − mean) / deviation" in text


class TestTrouble:
    def test_another_score_than_the_runs_is_refused_and_nothing_stays(
        self, changed: Callable[..., Contents], contents: Contents, output: Path
    ) -> None:
        score = contents.engine.score
        assert isinstance(score, Accuracy)
        wrong = changed(score=score.model_copy(update={"correct": score.correct - 1}))
        with pytest.raises(ExportError, match="from the bundle's folder alone the accuracy is"):
            written(wrong, output)
        assert list(output.parent.iterdir()) == []

    def test_a_folder_in_the_way_is_left_alone(self, contents: Contents, output: Path) -> None:
        output.mkdir()
        (output / "mine.txt").write_text("mine")
        with pytest.raises(UsageError, match="exists; name another folder"):
            written(contents, output)
        with pytest.raises(UsageError, match="is no bundle of potstill"):
            written(contents, output, replace=True)
        assert [path.name for path in output.parent.rglob("*")] == ["bundle", "mine.txt"]

    def test_a_bundle_is_replaced_as_a_whole_where_that_is_asked(
        self, bundle: Path, contents: Contents, output: Path
    ) -> None:
        output.mkdir()
        (output / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
        (output / "old.txt").write_text("old")
        (output.parent / "bundle.aside").mkdir()  # of one that was killed
        written(contents, output, replace=True)
        assert not (output / "old.txt").exists()
        assert [path.name for path in output.parent.iterdir()] == ["bundle"]

    def test_a_bundle_survives_a_kill_between_the_renamings_that_replace_it(
        self, bundle: Path, contents: Contents, output: Path
    ) -> None:
        old = Path(shutil.copytree(bundle, output.parent / "bundle.old"))
        with pytest.raises(UsageError, match="exists; name another folder"):
            written(contents, output)
        assert Manifest.load(output) == Manifest.load(bundle)
        assert not old.exists()

    def test_a_file_where_a_folder_should_be_is_told(self, contents: Contents, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(RunFolderError, match="is not a folder, or a file is in its way"):
            written(contents, tmp_path / "file" / "bundle")

    def test_a_disk_that_takes_no_more_is_told_and_nothing_stays(self, contents: Contents, output: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (contents.file.stat().st_size - 1, before[1]))
        try:
            with pytest.raises(RunFolderError, match="a file outgrew what this process may write"):
                written(contents, output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(output.parent.iterdir()) == []

    def test_a_runtime_without_an_example_is_refused_before_anything_is_written(
        self, changed: Callable[..., Contents], output: Path
    ) -> None:
        with pytest.raises(ExportError, match=r"engines of abacus cannot be bundled.*onnxruntime"):
            written(changed(runtime="abacus"), output)
        assert list(output.parent.iterdir()) == []


def test_what_is_in_the_manifest_is_in_the_folder_of_a_bundle_for_triton(contents: Contents, output: Path) -> None:
    manifest = written(replace(contents, name="bars-2"), output, triton=True)
    assert {"model_repository/bars-2/config.pbtxt", "model_repository/bars-2/1/model.onnx"} <= set(manifest.files)
    assert json.loads((output / "manifest.json").read_text())["name"] == "bars-2"
