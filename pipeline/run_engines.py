"""The engines of a run's steps, in the run's folder: built and measured, or reused where nothing changed."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from ..export.deliver import BuiltEngine, Measured, OnnxMetadata, build_engine, measure_engine
from ..export.machine import machine_facts
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
        made_from = fingerprint(
            engine.fingerprint,
            baseline.fingerprint,
            target.measure_settings(),
            machine_facts().identity(),
            self._plan.task.identity,
            self.code,
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

    @cached_property
    def code(self) -> str:
        """Of everything that builds and measures engines."""
        return code_fingerprint("export")
