"""The engines of a run's steps, in the run's folder: built and measured, or reused where nothing changed."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import JsonValue

from ..export.deliver import (
    BuiltEngine,
    Measured,
    OnnxMetadata,
    Ranking,
    Scenarios,
    build_engine,
    measure_engine,
    measure_scenarios,
    rank_engines,
)
from ..export.machine import machine_facts
from ..export.measurement import EngineMeasurement, Ranked
from ..export.target import Target
from .artifact import Artifact
from .fingerprints import code_fingerprint, fingerprint
from .journal import Journal
from .plan import Plan, Step
from .progress import Progress
from .run_folder import Reuse, RunFolder


@dataclass(frozen=True)
class Finished:
    """A step that has its artifact."""

    step: Step
    artifact: Artifact
    journal: Journal
    reused: bool
    seconds: float

    @classmethod
    def load(cls, step: Step, folder: Path) -> Self:
        """The step whose artifact and story lie in `folder`."""
        story = json.loads((folder / "journal.json").read_text())
        journal = Journal.model_validate(story["journal"])
        return cls(step, Artifact.load(folder), journal, reused=True, seconds=story["seconds"])


class RunEngines:
    """Builds and measures engines into a run's folder; `counting` is told what the time goes to."""

    def __init__(
        self,
        plan: Plan,
        files: RunFolder,
        progress: Progress,
        counting: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._plan = plan
        self._files = files
        self._progress = progress
        self._counting = counting

    def built(self, last: Finished, target: Target, precision: str) -> BuiltEngine:
        """The engine of a step's artifact, reused where nothing it depends on changed."""
        part = f"{last.step.folder}/{target.slug}-{precision}"
        made_from = fingerprint(last.step.fingerprint, target.build_settings(), precision, self.code)
        found = self._files.state(part, made_from)
        if isinstance(found, Reuse):
            return BuiltEngine.load(found.path)
        data = self._plan.data
        with self._counting("export"), self._files.writing(part, made_from) as folder:
            self._progress.say(f"{last.step.folder}: exports {target.label} {precision}")
            metadata = OnnxMetadata(recipe_hash=self._plan.model_hash, stage=last.step.name, classes=data.classes)
            engine = build_engine(last.artifact, target, precision, folder, data, metadata=metadata)
            for remark in engine.remarks:
                self._progress.say(f"{last.step.folder}: {engine.label}: {remark}")
        return BuiltEngine.load(self._files.path / part)

    def measured(self, last: Finished, target: Target, precision: str, baseline: BuiltEngine) -> Measured:
        """The engine's numbers beside the teacher's, taken on this machine."""
        engine = self.built(last, target, precision)
        part = f"{last.step.folder}/{target.slug}-{precision}-measured"
        made_from = self.measured_from(
            engine.fingerprint, baseline.fingerprint, target.measure_settings(), self._plan.task.identity
        )
        found = self._files.state(part, made_from)
        if isinstance(found, Reuse):
            return Measured.load(found.path)
        with self._counting("measuring"), self._files.writing(part, made_from) as folder:
            self._progress.say(f"{last.step.folder}: measures {target.label} {precision}")
            file = f"{last.step.folder}/{target.slug}-{precision}/{engine.file}"
            measured = measure_engine(engine, baseline, target, self._plan.data, self._plan.task, file=file)
            measured.save(folder)
        return measured

    def with_scenarios(self, measured: EngineMeasurement, last: Finished, target: Target) -> EngineMeasurement:
        """The same with the scenarios that the target asks for."""
        settings = target.scenario_settings()
        if not settings:
            return measured
        engine = self.built(last, target, measured.precision)
        part = f"{last.step.folder}/{target.slug}-{measured.precision}-scenarios"
        made_from = self.measured_from(engine.fingerprint, settings)
        found = self._files.state(part, made_from)
        if isinstance(found, Reuse):
            scenarios = Scenarios.load(found.path)
        else:
            with self._counting("measuring"), self._files.writing(part, made_from) as folder:
                self._progress.say(f"{last.step.folder}: measures the scenarios of {engine.label}")
                scenarios = measure_scenarios(engine, target, self._plan.data)
                scenarios.save(folder)
        return measured.model_copy(update={"offline": scenarios.offline, "server": scenarios.server})

    def ranking(self, last: Finished, finals: Sequence[tuple[Target, str]]) -> tuple[Ranked, ...]:
        """The final engines of all targets beside each other; empty for fewer than two."""
        engines = [(self.built(last, target, precision), target) for target, precision in finals]
        if len(engines) < 2:
            return ()
        part = f"{last.step.folder}/ranking"
        made_from = self.measured_from([[engine.fingerprint, target.measure_settings()] for engine, target in engines])
        found = self._files.state(part, made_from)
        if isinstance(found, Reuse):
            return Ranking.load(found.path).engines
        with self._counting("measuring"), self._files.writing(part, made_from) as folder:
            self._progress.say(f"{last.step.folder}: times the {len(engines)} final engines in turns")
            ranking = Ranking(engines=rank_engines(engines, self._plan.data))
            if not ranking.engines:
                self._progress.say(f"{last.step.folder}: engines are not ranked: their targets share no batch size")
            ranking.save(folder)
        return ranking.engines

    def measured_from(self, *parts: JsonValue) -> str:
        """The fingerprint of a measurement, which is of this machine and this code as well."""
        return fingerprint(*parts, machine_facts().identity(), self.code)

    @cached_property
    def code(self) -> str:
        """Of everything that builds and measures engines."""
        return code_fingerprint("export")
