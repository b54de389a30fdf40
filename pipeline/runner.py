"""A run: the stages in the recipe's order, each followed by its engine and that engine's numbers, then the report."""

import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ..export.deliver import (
    BuiltEngine,
    Measured,
    compare_engines,
    diagnose,
    paired_change,
)
from ..export.machine import machine_facts
from ..export.measurement import Comparison, EngineMeasurement, Gate, Ranked, ScoreChange
from ..export.target import Target, scheme_of
from .artifact import Artifact
from .cost import macs, num_parameters
from .data import Dataset
from .finished_run import Origin
from .goals import judged
from .journal import Journal
from .plan import TEACHER, Plan, Step
from .processes import ALONE, Processes
from .progress import Progress
from .recipe import Recipe
from .report import Report, StepReport
from .run_engines import Finished, RunEngines
from .run_folder import Reuse, RunFolder
from .teacher import Teacher
from .views.files import report_files


def run(
    recipe: Recipe,
    *,
    directory: Path,
    folder: Path,
    progress: Progress,
    fresh: bool = False,
    until: str | None = None,
    processes: Processes = ALONE,
) -> Report:
    """Run a recipe, or go on with it where an earlier call in the same `folder` stopped.

    `directory` is the recipe's folder, where its relative paths start; `until` names the last step to make. What is
    there and was made from the same settings, data, teacher and code is reused. Ends with ``report.json``,
    ``report.md`` and ``report.html`` in the folder. Of several `processes`, the main one calls this, and the others
    `following.follow`.
    """
    with RunFolder.open(folder, fresh=fresh) as files:
        return _Run(recipe, directory, files, progress, processes).finish(until)


@dataclass
class _Clock:
    """Where a run's time went, in seconds."""

    started: float = field(default_factory=time.monotonic)
    spent: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def counting(self, what: str) -> Generator[None, None, None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + time.monotonic() - begun

    @property
    def total(self) -> float:
        return time.monotonic() - self.started

    @property
    def overhead(self) -> float:
        """What was neither training, exporting nor measuring."""
        return self.total - sum(self.spent.values())


class _Run:
    """One call of `run`: what it holds on to from the first step to the report."""

    def __init__(
        self, recipe: Recipe, directory: Path, files: RunFolder, progress: Progress, processes: Processes
    ) -> None:
        self._clock = _Clock()
        self._began = datetime.now(UTC)
        self._recipe = recipe
        self._files = files
        self._progress = progress
        self._processes = processes
        self._plan = processes.first_in_main(lambda: Plan.of(recipe, directory, progress))
        self._plan.settle(progress)
        self._data: Dataset = self._plan.data
        self._engines = RunEngines(self._plan, files, progress, self._clock.counting)
        self._teacher: Teacher | None = None
        self._artifacts: dict[str, Artifact] = {}
        self._measurements: list[Measured] = []

    def finish(self, until: str | None) -> Report:
        """Make every step up to `until`, and the report of them."""
        self._files.write_file("recipe.yaml", self._plan.recipe_yaml)
        reports: list[StepReport] = []
        artifact = self._plan.initial_artifact()
        last: Finished | None = None
        before: Finished | None = None
        baselines: dict[str, BuiltEngine] = {}
        for step in self._plan.steps(until):
            last = self._made(step, artifact)
            artifact = last.artifact
            self._artifacts[step.name] = artifact
            if self._teacher is None:
                self._teacher = self._plan.teacher_of(artifact, self._files.path.parent)
                baselines = {target.label: self._engines.built(last, target, "fp32") for target in self._recipe.targets}
            reports.append(self._reported(last, before, baselines))
            before = last
        assert last is not None  # a plan has at least one step
        engines = self._all_engines(last, baselines)
        return self._saved(tuple(reports), engines, self._engines.ranking(last, self._finals(last)))

    def _made(self, step: Step, artifact: Artifact) -> Finished:
        part = f"{step.folder}/artifact"
        found = self._files.state(part, step.fingerprint)
        if isinstance(found, Reuse):
            self._progress.say(f"{step.folder}: reused")
            self._processes.told(lambda: None)
            self._processes.told(lambda: str(found.path))
            return Finished.load(step, found.path)
        if found.reason:
            self._progress.say(f"{step.folder}: {found.reason}")
        with self._clock.counting("training"):
            begun = time.monotonic()
            journal = Journal()
            made = artifact
            if step.stage is not None:
                self._progress.say(f"{step.folder}: starts")
                checkpoints = self._files.checkpoints(step.folder, step.fingerprint)
                context = self._plan.context(
                    step,
                    checkpoints,
                    self._progress,
                    journal,
                    self._teacher,
                    dict(self._artifacts),
                    runs=self._files.path.parent,
                    processes=self._processes,
                )
                self._processes.told(lambda: str(checkpoints))
                made = step.stage.run(artifact, context)
            else:
                self._processes.told(lambda: None)
            made = replace(made, lineage=(*artifact.lineage, step.name))
            seconds = time.monotonic() - begun
        with self._files.writing(part, step.fingerprint) as folder:
            made.save(folder, self._data.example())
            story = {"seconds": seconds, "journal": journal.model_dump(mode="json")}
            (folder / "journal.json").write_text(json.dumps(story, indent=1))
        self._processes.told(lambda: str(self._files.path / part))
        self._files.discard_checkpoints(step.folder)
        return Finished(step, made, journal, reused=False, seconds=seconds)

    def _gate(self, last: Finished, before: Finished, timing: Comparison, baseline: BuiltEngine) -> Gate:
        """The step's engine beside that of the step before; with the diagnosis where a compression did not pay."""
        target = self._recipe.targets[0]
        engine, previous = (self._engines.built(each, target, self._precision(each)) for each in (last, before))
        part = f"{last.step.folder}/{target.slug}-gate"
        made_from = self._engines.measured_from(engine.fingerprint, previous.fingerprint, target.measure_settings())
        found = self._files.state(part, made_from)
        if isinstance(found, Reuse):
            return Gate.model_validate_json((found.path / "gate.json").read_bytes())
        with self._clock.counting("measuring"), self._files.writing(part, made_from) as folder:
            beside = timing
            if previous.fingerprint != baseline.fingerprint:
                self._progress.say(f"{last.step.folder}: measures beside {before.step.folder}")
                beside = compare_engines(engine, previous, target, self._data)
            stage = last.step.stage
            compresses, aim = (False, "speed") if stage is None else (stage.compresses, stage.aim)
            reasons = (
                diagnose(engine, previous, target, self._data, last.artifact)
                if compresses and aim == "speed" and beside.verdict != "faster"
                else ()
            )
            gate = Gate(comparison=beside, compresses=compresses, aim=aim, diagnosis=reasons)
            (folder / "gate.json").write_text(gate.model_dump_json(indent=1))
        return gate

    def _precision(self, last: Finished) -> str:
        """Of the engine that a step is judged by: that of its quantization, where the first target has it."""
        quantization = last.artifact.quantization
        scheme = None if quantization is None else quantization.scheme
        made_of_it = (each for each in self._recipe.targets[0].precision if scheme and scheme_of(each) == scheme)
        return next(made_of_it, "fp32")

    def _reported(self, last: Finished, before: Finished | None, baselines: dict[str, BuiltEngine]) -> StepReport:
        """A step with the numbers of its engine for the first target."""
        target = self._recipe.targets[0]
        baseline = baselines[target.label]
        measured = self._engines.measured(last, target, self._precision(last), baseline)
        self._measurements.append(measured)
        engine = measured.engine if before else self._engines.with_scenarios(measured.engine, last, target)
        return StepReport(
            name=last.step.folder,
            stage=last.step.stage.stage if last.step.stage else TEACHER,
            reused=last.reused,
            seconds=last.seconds,
            parameters=num_parameters(last.artifact.model),
            macs=macs(last.artifact.model, self._data.example(1)),
            facts=last.journal.facts,
            curve=tuple(last.journal.curve),
            engine=engine,
            gate=None if before is None else self._gate(last, before, engine.latency[0], baseline),
            change=self._change(-2),
            change_since_teacher=self._change(0),
        )

    def _change(self, against: int) -> ScoreChange | None:
        """Of the newest step's score against that of another; None where there is none, and for shares."""
        metric = self._plan.task.metric
        if len(self._measurements) < 2 or metric.kind == "share":
            return None
        return paired_change(self._measurements[against].values, self._measurements[-1].values, metric)

    def _all_engines(self, last: Finished, baselines: dict[str, BuiltEngine]) -> tuple[EngineMeasurement, ...]:
        """Every final engine's numbers."""
        return tuple(
            self._engines.with_scenarios(
                self._engines.measured(last, target, precision, baselines[target.label]).engine, last, target
            )
            for target, precision in self._finals(last)
        )

    def _finals(self, last: Finished) -> tuple[tuple[Target, str], ...]:
        """Every target and precision of the last artifact; others than fp32 only where it is quantized."""
        return tuple(
            (target, precision)
            for target in self._recipe.targets
            for precision in target.precision
            if scheme_of(precision) is None or last.artifact.quantization is not None
        )

    def _saved(
        self, steps: tuple[StepReport, ...], engines: tuple[EngineMeasurement, ...], ranking: tuple[Ranked, ...]
    ) -> Report:
        report = Report(
            name=self._recipe.name,
            recipe=self._plan.recipe_yaml,
            recipe_hash=self._plan.model_hash,
            seed=self._recipe.seed,
            started=self._began,
            seconds=self._clock.total,
            overhead_seconds=self._clock.overhead,
            machine=machine_facts(),
            data=self._data.description,
            classes=self._data.classes,
            steps=steps,
            engines=engines,
            ranking=ranking,
            goals=judged(self._recipe.goals, steps[0].engine, steps[-1].engine),
        )
        Origin(directory=self._plan.directory.absolute(), data=self._data.fingerprint).save(self._files)
        for name, text in report_files(report).items():
            self._files.write_file(name, text)
        return report
