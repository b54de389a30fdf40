"""Facts about folders that are taken for a finished run."""

import shutil
from pathlib import Path

import pytest

from potstill.pipeline.errors import UsageError
from potstill.pipeline.finished_run import FinishedRun, Origin
from tests.pipeline import sample_report

RECIPE = sample_report.RECIPE.replace(
    "- stage: distill\n", "- stage: distill\n  student: {from: teacher, width: 0.5}\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a finished run leaves, without its parts."""
    run = tmp_path / "digits"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    (run / "report.json").write_text(sample_report.sample_report(recipe=RECIPE).model_dump_json())
    (run / "origin.json").write_text(Origin(directory=tmp_path / "recipes", data="abc").model_dump_json())
    return run


class TestLoad:
    def test_reads_report_recipe_and_where_its_paths_start(self, folder: Path) -> None:
        run = FinishedRun.load(folder)
        assert run.report.name == run.recipe.name == "digits"
        assert run.directory == folder.parent / "recipes"
        assert FinishedRun.load(folder, Path("/elsewhere")).directory == Path("/elsewhere")

    @pytest.mark.parametrize(
        ("lost", "sentence"),
        [
            ("", "is no folder; name the folder of a finished run"),
            ("recipe.yaml", "is no run: it has no recipe.yaml"),
            ("report.json", "the run has not finished; `potstill run` with its recipe goes on with it"),
            ("origin.json", "was made by an older potstill"),
        ],
    )
    def test_says_what_is_lacking(self, lost: str, sentence: str, folder: Path) -> None:
        shutil.rmtree(folder) if not lost else (folder / lost).unlink()
        with pytest.raises(UsageError, match=sentence):
            FinishedRun.load(folder)

    def test_a_run_begun_anew_is_not_finished(self, folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.replace("seed: 17", "seed: 18"))
        with pytest.raises(UsageError, match="begun anew with other settings and has not finished"):
            FinishedRun.load(folder)

    @pytest.mark.parametrize("name", ["origin.json", "report.json"])
    def test_a_damaged_file_is_named(self, name: str, folder: Path) -> None:
        (folder / name).write_text("{")
        with pytest.raises(UsageError, match=name):
            FinishedRun.load(folder)

    @pytest.mark.parametrize("name", ["origin.json", "recipe.yaml"])
    def test_a_file_that_is_no_text_is_named(self, name: str, folder: Path) -> None:
        (folder / name).write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match=rf"{name}: cannot be read"):
            FinishedRun.load(folder)


class TestStep:
    @pytest.mark.parametrize("name", ["distill", "02-distill"])
    def test_goes_by_its_name_or_its_folder(self, name: str, folder: Path) -> None:
        assert FinishedRun.load(folder).step(name).name == "02-distill"

    def test_is_the_last_one_without_a_name(self, folder: Path) -> None:
        assert FinishedRun.load(folder).step(None).name == "06-quantize"

    def test_an_unknown_one_is_told_with_the_nearest(self, folder: Path) -> None:
        with pytest.raises(UsageError, match=r"has no step `quantise`; did you mean `quantize`\? allowed: train, dist"):
            FinishedRun.load(folder).step("quantise")
