"""Every recipe of a scheme of distillation trains a student that has learnt, and one runs up to its report."""

import json
from pathlib import Path

import pytest

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.cli import main
from potstill.pipeline.journal import Journal
from potstill.pipeline.plan import Plan
from potstill.pipeline.progress import Silent
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import metric_of

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.glob("scheme-*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_stages_of_a_recipe_end_with_a_student_that_has_learnt(file: Path, tmp_path: Path) -> None:
    """On the digits in their own size, and without engines: those do not depend on how a model was trained."""
    recipe = load_recipe(file, ["data.size=8"])
    plan = Plan.of(recipe, file.parent)
    artifact, teacher = plan.initial_artifact(), None
    artifacts: dict[str, Artifact] = {}
    reached: list[float] = []
    for step in plan.steps():
        assert step.stage is not None
        (tmp_path / step.folder).mkdir()
        context = plan.context(step, tmp_path / step.folder, Silent(), Journal(), teacher, artifacts)
        artifact = artifacts[step.name] = step.stage.run(artifact, context)
        teacher = teacher or Teacher(artifact)
        reached.append(metric_of(artifact.model, plan.data.test, context))
    assert reached[-1] > 0.9, reached


def test_a_run_ends_with_the_report_of_every_step(tmp_path: Path) -> None:
    shortened = ["--set", "data.size=8", "--set", "stages.train.epochs=1", "--set", "stages.distill.epochs=1"]
    assert main(["run", str(CONFIGS / "scheme-online.yaml"), "--runs-dir", str(tmp_path), *shortened]) == 0
    report = json.loads((tmp_path / "scheme-online" / "report.json").read_text())
    assert [step["stage"] for step in report["steps"]] == ["train", "distill"]
    assert set(report["steps"][1]["curve"][0]["terms"]) == {"task", "dml", "dml itself"}
