"""From a run that is over to a bundle: which engine, that it is as it was measured, and what is said of it."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from ..export.bundle.manifest import Attribution, Manifest, Provenance
from ..export.bundle.writing import Contents, write_bundle
from ..export.measurement import EngineMeasurement
from ..export.target import Target, targets
from .errors import RunFolderError, UsageError
from .finished_run import FinishedRun
from .models import PythonModel
from .progress import Progress
from .recipe_problems import nearest
from .run_folder import Part, recorded_parts, version


def bundle(
    run: FinishedRun, output: Path, *, engine: str | None, triton: bool, replace: bool, progress: Progress
) -> Manifest:
    """Make a deployable folder of one engine of a run: by its label, or the last step's for the first target.

    Raises UsageError for an unknown label and for an `output` that is in the way, RunFolderError where the engine is
    not as it was built, and the errors of whatever of the run's data, task or runtime is not to be found here.
    """
    chosen = _chosen(run, engine)
    target = _target_of(chosen)
    parts = recorded_parts(run.folder)
    file = _unharmed(run, chosen, parts)
    plan = run.plan([target], progress)
    contents = Contents(
        name=run.report.name,
        engine=chosen,
        target=target,
        file=file,
        data=plan.data,
        task=plan.task,
        task_name=run.recipe.task,
        machine=chosen.machine or run.report.machine,
        taken=_taken(run, chosen, parts),
        attribution=_attribution(run),
        provenance=Provenance(
            run=run.report.name,
            recipe=run.report.recipe,
            recipe_hash=run.report.recipe_hash,
            seed=run.report.seed,
            step=PurePosixPath(chosen.file).parts[0],
            potstill=version(),
        ),
    )
    return write_bundle(contents, output, triton=triton, replace=replace, progress=progress)


def _chosen(run: FinishedRun, label: str | None) -> EngineMeasurement:
    final = run.report.steps[-1].engine
    # The newest measurement of a file is among the final engines; those of an unfinished recipe may lack the step's.
    by_file = {each.file: each for each in (final, *run.report.engines)}
    if label is None:
        return by_file[final.file]
    by_label = {each.target: each for each in by_file.values()}
    if label not in by_label:
        raise UsageError(f"--engine: {run.folder} has no engine `{label}`; {nearest(label, list(by_label))}")
    return by_label[label]


def _target_of(engine: EngineMeasurement) -> Target:
    known = targets()
    if engine.runtime not in known:
        raise UsageError(f"{engine.target}: this potstill has no runtime `{engine.runtime}`; update it")
    told = {"runtime": engine.runtime, "device": engine.device, "threads": engine.threads}
    try:
        return known[engine.runtime].model_validate({**told, **engine.settings, "precision": (engine.precision,)})
    except ValidationError as error:
        raise UsageError(
            f"{engine.target}: this potstill does not know its settings ({error.errors()[0]['msg']}); update it"
        ) from error


def _unharmed(run: FinishedRun, engine: EngineMeasurement, parts: Mapping[str, Part]) -> Path:
    file = run.folder / engine.file
    record = parts.get(str(PurePosixPath(engine.file).parent))
    problem = "the run has no record of it" if record is None else record.problem(file.parent)
    if problem is not None:
        raise RunFolderError(f"{file.parent}: {problem}; `potstill run` with the run's recipe builds it anew")
    return file


def _taken(run: FinishedRun, engine: EngineMeasurement, parts: Mapping[str, Part]) -> datetime:
    measured = parts.get(f"{PurePosixPath(engine.file).parent}-measured")
    return run.report.started if measured is None else measured.finished


def _attribution(run: FinishedRun) -> Attribution:
    teacher = run.recipe.teacher
    weights = "" if teacher.weights is None else f", weights from {teacher.weights.name}"
    name = teacher.model.python if isinstance(teacher.model, PythonModel) else teacher.model.label
    return Attribution(
        data=run.report.data,
        data_license=run.recipe.data.license,
        teacher=f"{name}{weights}",
        teacher_license=teacher.license,
    )
