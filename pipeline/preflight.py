"""What can be found out before hours of training: a rehearsal of the whole run without any."""

import tempfile
from dataclasses import replace
from pathlib import Path

from ..export.deliver import rehearse_engine
from .artifact import Artifact
from .cost import macs, num_parameters
from .errors import RunFolderError
from .journal import Journal
from .plan import Plan
from .progress import Progress, Silent
from .recipe import Recipe
from .storage_errors import folder_problem
from .teacher import Teacher

FILES_PER_STEP = 12
"""A step's artifact, its engines, and a checkpoint with momentum, each about as large as the float weights."""


def check(recipe: Recipe, *, directory: Path, folder: Path, progress: Progress) -> list[str]:
    """Rehearse the run on untrained weights; returns what was found, a sentence each.

    The data is read, the teacher built and run, every stage applied for no epoch, the last artifact exported for every
    target. Raises the error of the first thing that would have ended the run.
    """
    plan = Plan.of(recipe, directory, progress)
    findings = [
        f"data: {plan.data.description}",
        f"device: {plan.device.type}, training in {plan.precision}",
    ]
    artifact = plan.initial_artifact()
    needed = 4 * num_parameters(artifact.model) * FILES_PER_STEP * len(plan.steps())
    problem = folder_problem(folder, needed)
    if problem is not None:
        raise RunFolderError(problem)
    findings.append(f"teacher: {_size(plan, artifact)}")
    with tempfile.TemporaryDirectory() as scratch:
        artifact = _rehearsed(plan, artifact, Path(scratch), progress, findings)
    for target in recipe.targets:
        for precision in target.precision:
            progress.say(f"export: {target.label} {precision}")
            rehearse_engine(artifact, target, precision, plan.data)
            findings.append(f"export: {target.label} {precision} can be built")
    return findings


def _rehearsed(plan: Plan, artifact: Artifact, scratch: Path, progress: Progress, findings: list[str]) -> Artifact:
    teacher: Teacher | None = None
    artifacts: dict[str, Artifact] = {}
    for step in plan.steps():
        if step.stage is not None:
            progress.say(f"{step.folder}: rehearses")
            checkpoints = scratch / step.folder
            checkpoints.mkdir()
            context = plan.context(step, checkpoints, Silent(), Journal(), teacher, artifacts)
            artifact = step.stage.untrained().run(artifact, context)
        artifact = replace(artifact, lineage=(*artifact.lineage, step.name))
        artifact.save(scratch / f"{step.folder}-artifact", plan.data.example())
        artifacts[step.name] = artifact
        teacher = teacher or Teacher(artifact)
        findings.append(f"{step.folder}: {_size(plan, artifact)}")
    return artifact


def _size(plan: Plan, artifact: Artifact) -> str:
    count, cost = num_parameters(artifact.model), macs(artifact.model, plan.data.example())
    return f"{count:,} parameters, {cost:,} multiply-accumulates a sample"
