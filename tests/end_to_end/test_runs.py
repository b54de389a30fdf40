"""Facts about whole runs, started as a user starts them."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from potstill.pipeline.cli import main
from tests.support.command_line import command

RECIPE = """
name: small
seed: 3
task: classification
precision: fp32
data: {source: digits, size: 8, batch_size: 64}
teacher:
  model: {name: resnet, depth: 8, width: 8}
stages:
  - {stage: train, epochs: 2, learning_rate: 0.1}
  - {stage: prune, keep: {macs: 0.8}, recover: {epochs: 1}}
  - {stage: quantize, calibration: {samples: 64}, recover: {epochs: 1}}
targets:
  - {runtime: onnxruntime, device: cpu, precision: [int8], batch: [1]}
"""

STEPS = ("01-train", "02-prune", "03-quantize")


def start(*arguments: str | Path, cwd: Path) -> "subprocess.Popen[str]":
    """The command line in a process of its own, on this checkout."""
    return subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # One thread sums in one order on every machine, however busy.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_undisturbed(recipe: Path) -> str:
    """The output of a run in a process of its own that nobody stops."""
    process = start("run", recipe, cwd=recipe.parent)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def potstill(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    """Exit code and output of one command that nobody stops; in this process, which has all libraries loaded."""
    output = StringIO()
    with chdir(cwd), redirect_stdout(output), redirect_stderr(output):
        code = main([*map(str, arguments)])
    return code, output.getvalue()


@pytest.fixture(scope="module")
def new_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes the recipe, changed or not, into a folder of its own."""

    def write(text: str = RECIPE) -> Path:
        file = tmp_path_factory.mktemp("recipe") / "small.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture(scope="module")
def undisturbed(new_recipe: Callable[..., Path]) -> Path:
    """The folder of a run that nothing interrupted."""
    recipe = new_recipe()
    run_undisturbed(recipe)
    return recipe.parent / "runs" / "small"


def weights(run: Path) -> dict[str, bytes]:
    """Every artifact's weights, byte for byte."""
    return {step: (run / step / "artifact" / "model.safetensors").read_bytes() for step in STEPS}


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


class TestRun:
    def test_leaves_recipe_report_and_pages(self, undisturbed: Path) -> None:
        names = {path.name for path in undisturbed.iterdir()}
        assert {"recipe.yaml", "report.json", "report.md", "report.html", "manifest.json", *STEPS} <= names

    def test_measures_an_engine_after_every_step(self, undisturbed: Path) -> None:
        steps = report(undisturbed)["steps"]
        assert [step["name"] for step in steps] == list(STEPS)
        assert [step["engine"]["precision"] for step in steps] == ["fp32", "fp32", "int8"]
        assert all(step["engine"]["score"]["count"] == 359 for step in steps)
        assert all(step["engine"]["latency"][0]["candidate"]["samples"] >= 20 for step in steps)

    def test_every_layer_of_the_int8_engine_runs_in_int8(self, undisturbed: Path) -> None:
        audit = report(undisturbed)["steps"][-1]["engine"]["audit"]
        assert audit["int8_share"] == 1.0
        assert {layer["precision"] for layer in audit["layers"]} == {"int8"}

    def test_a_second_run_reuses_everything(self, undisturbed: Path) -> None:
        before = weights(undisturbed)
        code, output = potstill("run", undisturbed.parents[1] / "small.yaml", cwd=undisturbed.parents[1])
        assert code == 0
        assert all(f"{step}: reused" in output for step in STEPS)
        assert weights(undisturbed) == before
        assert all(step["reused"] for step in report(undisturbed)["steps"])


class TestResume:
    def test_a_run_killed_in_every_step_ends_with_the_undisturbed_weights_bit_for_bit(
        self, undisturbed: Path, new_recipe: Callable[..., Path]
    ) -> None:
        """While a teacher trains, while an engine is built and measured, and while a quantized model trains."""
        recipe = new_recipe()
        run = recipe.parent / "runs" / "small"
        draws = random.Random(1)
        for begun in ("checkpoints/01-train@*/train.safetensors", "02-prune/artifact", "checkpoints/03-quantize@*/*"):
            process = start("run", recipe, cwd=recipe.parent)
            while not list(run.glob(begun)):
                assert process.poll() is None
                time.sleep(0.02)
            time.sleep(draws.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        assert "01-train: reused" in run_undisturbed(recipe)
        assert weights(run) == weights(undisturbed)

    def test_a_changed_stage_is_made_again_with_all_that_follow_and_no_others(
        self, undisturbed: Path, new_recipe: Callable[..., Path]
    ) -> None:
        recipe = new_recipe()
        shutil.copytree(undisturbed, recipe.parent / "runs" / "small")
        code, output = potstill("run", recipe, "--set", "stages.prune.recover.epochs=0", cwd=recipe.parent)
        assert code == 0, output
        reused = [step["reused"] for step in report(recipe.parent / "runs" / "small")["steps"]]
        assert reused == [True, False, False]

    def test_a_changed_goal_makes_nothing_again_and_a_missed_one_ends_with_3(self, undisturbed: Path) -> None:
        code, output = potstill("run", "small.yaml", "--set", "goals.max_file_bytes=10", cwd=undisturbed.parents[1])
        assert code == 3
        assert "max_file_bytes" in output
        assert all(step["reused"] for step in report(undisturbed)["steps"])

    def test_ctrl_c_says_how_to_go_on(self, new_recipe: Callable[..., Path]) -> None:
        recipe = new_recipe()
        process = start("run", recipe, cwd=recipe.parent)
        manifest = recipe.parent / "runs" / "small"
        while not manifest.exists():
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate()
        assert process.returncode == 130
        assert "the same command continues from here" in output
        assert "Traceback" not in output


class TestOrders:
    def test_factorizing_after_quantizing_still_gives_a_working_int8_engine(
        self, undisturbed: Path, new_recipe: Callable[..., Path]
    ) -> None:
        text = RECIPE.replace("targets:", "  - {stage: factorize, keep: {energy: 0.6}, recover: {epochs: 1}}\ntargets:")
        recipe = new_recipe(text)
        shutil.copytree(undisturbed, recipe.parent / "runs" / "small")
        code, output = potstill("run", recipe, cwd=recipe.parent)
        assert code == 0, output
        *before, last = report(recipe.parent / "runs" / "small")["steps"]
        assert all(step["reused"] for step in before)
        assert last["stage"] == "factorize"
        assert last["engine"]["audit"]["int8_share"] == 1.0
        assert any(layer["decision"].startswith("factorized") for layer in last["facts"]["layers"])
