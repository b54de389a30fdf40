"""More engines for a run that is over: built, proven and measured as the run's own, and put into its report."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from ..export.machine import machine_facts
from ..export.measurement import EngineMeasurement, Machine
from ..export.target import Target, scheme_of
from .artifact import Artifact
from .errors import RunFolderError, UsageError
from .finished_run import FinishedRun
from .plan import Step
from .progress import Progress
from .report import Report, StepReport
from .run_engines import Finished, RunEngines
from .run_folder import Reuse, RunFolder
from .views.files import report_files


def add_engines(
    run: FinishedRun, targets: Sequence[Target], *, step: str | None, progress: Progress
) -> tuple[EngineMeasurement, ...]:
    """Build a step's artifact for every target and precision, beside the teacher's engine of that target.

    The last step's, without a name. What is in the run's folder and was made from the same things is reused, so a call
    that was cut off goes on where it stopped. The run's report holds the engines in the end.
    """
    chosen = run.step(step)
    plan = run.plan(targets, progress)
    with RunFolder.open(run.folder) as files:
        engines = RunEngines(plan, files, progress, lambda what: nullcontext())
        teacher, made = (_taken(files, each) for each in (run.report.steps[0], chosen))
        _demand_quantized(made.artifact, chosen, targets)
        found = tuple(
            _told(engine, run, chosen) for target in targets for engine in _measured(engines, teacher, made, target)
        )
        for name, text in report_files(_with(run.report, found)).items():
            files.write_file(name, text)
    return found


def _taken(files: RunFolder, step: StepReport) -> Finished:
    """A step as the run left it, whichever potstill made it."""
    part = f"{step.name}/artifact"
    made_from = files.recorded(part)
    reason = "is not there"
    if made_from is not None:
        state = files.state(part, made_from)
        if isinstance(state, Reuse):
            number, _, name = step.name.partition("-")
            return Finished.load(Step(int(number), name, None, made_from), state.path)
        reason = state.reason
    raise RunFolderError(f"{files.path / part}: {reason}; `potstill run` with the run's recipe makes it anew")


def _measured(engines: RunEngines, teacher: Finished, made: Finished, target: Target) -> Iterator[EngineMeasurement]:
    baseline = engines.built(teacher, target, "fp32")
    for precision in target.precision:
        yield engines.with_scenarios(engines.measured(made, target, precision, baseline).engine, made, target)


def _demand_quantized(artifact: Artifact, step: StepReport, targets: Sequence[Target]) -> None:
    scheme = None if artifact.quantization is None else artifact.quantization.scheme
    for target in targets:
        for precision in target.precision:
            if scheme_of(precision) not in (None, scheme):
                what = "not quantized" if scheme is None else f"quantized to {scheme}"
                raise UsageError(
                    f"--target: {target.label} has {precision}, but {step.name} is {what}; take {precision} out, or "
                    "name another --step"
                )


def _told(engine: EngineMeasurement, run: FinishedRun, step: StepReport) -> EngineMeasurement:
    """With the step where it is not the last one, and with the machine where it is not the run's."""
    changes: dict[str, object] = {}
    if step != run.report.steps[-1]:
        changes["target"] = f"{engine.target} of {step.name}"
    here = machine_facts()
    differing = list(_differences(run.report.machine, here))
    if differing:
        changes["machine"] = here
        changes["remarks"] = (*engine.remarks, f"measured elsewhere than the rest of this run: {'; '.join(differing)}")
    return engine.model_copy(update=changes)


def _differences(before: Machine, now: Machine) -> Iterator[str]:
    was, is_now = ({**machine.identity(), **machine.libraries} for machine in (before, now))
    for name in dict.fromkeys((*was, *is_now)):
        if name != "libraries" and was.get(name) != is_now.get(name):
            yield f"{name.replace('_', ' ')} {is_now.get(name, 'none')} (the run: {was.get(name, 'none')})"


def _with(report: Report, found: Sequence[EngineMeasurement]) -> Report:
    """The report with the engines behind those it has; one that it had is replaced where it stood."""
    engines = {engine.file: engine for engine in report.engines} | {engine.file: engine for engine in found}
    return report.model_copy(update={"engines": tuple(engines.values())})
