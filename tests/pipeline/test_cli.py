"""Facts about the command line: help, exit codes, and what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from potstill.pipeline.cli import main
from potstill.pipeline.recipe import load_recipe

ROOT = Path(__file__).parents[2]
VERBS = ("run", "check", "compare", "export", "bundle", "profile", "list", "schema", "doctor", "init")

Output = pytest.CaptureFixture[str]


def test_help_lists_every_verb(capsys: Output) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert "..." not in out.partition("Commands:")[2]  # every verb's sentence fits its line


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_on_a_line_of_its_own(verb: str, capsys: Output) -> None:
    assert main([verb, "--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f"potstill {verb}") for line in lines)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["nonsense"], ["run"]])
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import runpy, sys
runpy.run_path({str(ROOT / "conftest.py")!r})
from potstill.pipeline.cli import main
main({arguments!r})
heavy = {{"torch", "numpy", "yaml", "onnx", "onnxruntime", "rich", "jinja2", "accelerate"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_checkout_runs_as_a_module_without_being_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: potstill" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "digits", "--nonsense"],
        ["list", "nonsense"],
        ["compare"],
        ["export", "x"],
        ["bundle", "x"],
    ],
)
def test_usage_errors_end_with_2(arguments: list[str], capsys: Output) -> None:
    assert main(arguments) == 2
    assert "potstill" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_wrong_recipe_ends_with_2_says_everything_and_leaves_nothing(
    verb: str, capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, "digits", "--set", "sede=3", "--set", "stages.train.epochs=many"]) == 2
    error = capsys.readouterr().err
    assert "did you mean `seed`?" in error
    assert "stages[0].epochs: must be a whole number, got 'many'" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_recipe_names_the_verb_that_writes_one(capsys: Output, tmp_path: Path) -> None:
    assert main(["run", str(tmp_path / "no.yaml")]) == 2
    assert "no such file; `potstill init` writes a recipe to begin with" in capsys.readouterr().err


def test_data_that_is_not_there_ends_with_1(capsys: Output, tmp_path: Path) -> None:
    changes = ["--set", "data={source: npz, path: no}", "--folder", str(tmp_path / "run")]
    assert main(["check", "digits", *changes]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_an_unknown_step_to_stop_at_lists_the_steps(capsys: Output, tmp_path: Path) -> None:
    assert main(["run", "digits", "--until", "distil", "--folder", str(tmp_path / "run")]) == 2
    assert "there is no step `distil`; the steps are train, distill" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_says_how_to_continue(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    (tmp_path / "a.yaml").write_text((ROOT / "configs/digits.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["run", "a.yaml", "--set", "data={source: data.py:make}"]) == 130
    assert "interrupted; the same command continues from here" in capsys.readouterr().err


def test_compare_says_which_path_holds_no_report(capsys: Output, tmp_path: Path) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "Traceback" not in error


class TestCompare:
    def test_a_run_that_is_not_as_demanded_ends_with_3_and_one_line_for_each_condition(
        self, capsys: Output, tmp_path: Path, samples: ModuleType
    ) -> None:
        (tmp_path / "report.json").write_text(samples.sample_report().model_dump_json())
        conditions = ["--fail-if", "p99_ms>0.3", "--fail-if", "accuracy<0.9"]
        assert main(["compare", str(tmp_path), *conditions, "--output", str(tmp_path / "out")]) == 3
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("✗ p99_ms>0.3 FAILED: A digits") for line in lines) == 1
        assert sum(line.startswith("✓ accuracy<0.9 passed: A digits") for line in lines) == 1
        assert {file.name for file in (tmp_path / "out").iterdir()} == {"compare.html", "compare.md", "compare.json"}
        assert main(["compare", str(tmp_path), "--fail-if", "p99_ms>0.4"]) == 0

    def test_a_baseline_and_budgets_may_be_given(self, capsys: Output, tmp_path: Path, samples: ModuleType) -> None:
        (tmp_path / "report.json").write_text(samples.sample_report().model_dump_json())
        arguments = [str(tmp_path), "--baseline", str(tmp_path / "report.json"), "--fail-if", "regression>5%"]
        assert main(["compare", *arguments, "--budget", "p50_ms=2"]) == 0
        assert "✓ regression>5% passed: B digits" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "compare takes 2 to 26 runs or profiles, got 1"),
            (["--fail-if", "p9_ms>2"], "there is no number `p9_ms`"),
            (["--fail-if", "p99_ms>2", "--budget", "speed=2"], "there is no number `speed`"),
        ],
    )
    def test_what_cannot_be_asked_ends_with_2(
        self, arguments: list[str], message: str, capsys: Output, tmp_path: Path, samples: ModuleType
    ) -> None:
        (tmp_path / "report.json").write_text(samples.sample_report().model_dump_json())
        assert main(["compare", str(tmp_path), *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("stages", ["train", "distill", "prune", "factorize", "quantize"]),
        ("knowledge", ["kd", "hint"]),
        ("models", ["resnet", "my_models.py:make_teacher"]),
        ("data", ["digits", "npz", "my_data.py:make"]),
        ("runtimes", ["onnxruntime"]),
    ],
)
def test_list_tells_each_name_with_a_sentence_and_its_keys(kind: str, names: list[str], capsys: Output) -> None:
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    unindented = [line for line in lines if not line.startswith((" ", "step times")) and not line.endswith(":")]
    described = {line.split()[0]: line.split(maxsplit=1)[1] for line in unindented}
    assert set(names) <= set(described)
    assert all(text.endswith((".", "``.")) or len(text) > 10 for text in described.values())
    assert any("keys: " in line for line in lines)


def test_list_knowledge_tells_kind_needs_source_weight_and_cost(capsys: Output) -> None:
    assert main(["list", "knowledge"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("response:\n")
    assert "Hinton et al. 2015, arXiv 1503.02531" in out
    assert re.search(
        r"needs logits · weight 0\.9 beside a task weight of 0\.1 · step (not measured|1\.\d+x of kd)", out
    )


def test_the_catalogue_in_the_docs_is_what_the_list_prints(capsys: Output) -> None:
    assert main(["list", "knowledge", "--markdown"]) == 0
    catalogue = capsys.readouterr().out
    assert catalogue in (Path(__file__).parents[2] / "docs" / "knowledge.md").read_text()


def test_only_knowledge_is_listed_as_markdown(capsys: Output) -> None:
    assert main(["list", "stages", "--markdown"]) == 2
    assert "potstill list knowledge" in capsys.readouterr().err


def test_schema_prints_json(capsys: Output) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "potstill recipe"


def test_doctor_tells_versions_runtimes_and_a_recommendation(capsys: Output) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "runtime    onnxruntime cpu: can build and run here" in out
    assert "library    torch " in out
    assert out.splitlines()[-1].startswith("advice     ")


def test_init_writes_a_recipe_that_loads_and_its_schema_and_replaces_nothing(
    capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    text = Path("recipe.yaml").read_text()
    assert "$schema=recipe.schema.json" in text
    assert json.loads(Path("recipe.schema.json").read_text())["title"] == "potstill recipe"
    assert load_recipe(Path("recipe.yaml")).name == "my-run"
    Path("recipe.yaml").write_text("mine")
    assert main(["init"]) == 2
    assert "recipe.yaml exists" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == "mine"
