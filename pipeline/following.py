"""A run in a process that is not the main one: it trains along, and waits while the main one measures and writes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .artifact import Artifact
from .bench import Beside
from .errors import RunFolderError
from .journal import Journal
from .plan import Plan, Step
from .processes import Processes
from .progress import Silent
from .recipe import Recipe
from .run_engines import Finished
from .teacher import Teacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .quantization import Quantization
    from .side_by_side import Part, SideBySide


def follow(recipe: Recipe, *, directory: Path, folder: Path, processes: Processes, until: str | None = None) -> None:
    """Take part in `runner.run` of the same recipe in the main process, step by step; writes and says nothing.

    Each step ends with the artifact that the main process stored in the run's `folder`.
    """
    plan = processes.first_in_main(lambda: Plan.of(recipe, directory))
    plan.settle(Silent())
    _Follower(plan, folder.absolute().parent, processes).finish(until)


class _Follower:
    def __init__(self, plan: Plan, runs: Path, processes: Processes) -> None:
        self._plan = plan
        self._runs = runs
        self._processes = processes
        self._teacher: Teacher | None = None
        self._artifacts: dict[str, Artifact] = {}

    def finish(self, until: str | None) -> None:
        artifact = self._plan.initial_artifact()
        for step in self._plan.steps(until):
            artifact = self._artifacts[step.name] = self._made(step, artifact)
            self._teacher = self._teacher or self._plan.teacher_of(artifact, self._runs)

    def _made(self, step: Step, artifact: Artifact) -> Artifact:
        checkpoints = self._processes.told(lambda: None)
        if checkpoints is not None and step.stage is not None:
            context = self._plan.context(
                step,
                Path(checkpoints),
                Silent(),
                Journal(),
                self._teacher,
                dict(self._artifacts),
                self._runs,
                self._processes,
            )
            step.stage.run(artifact, replace(context, bench=_NoBench(context.bench.label)))
        stored = Path(self._processes.told(lambda: None))
        if not stored.exists():
            raise RunFolderError(
                f"{stored}: process {self._processes.rank} does not see what the main process wrote there; put the run "
                "into a folder that all processes see"
            )
        return Finished.load(step, stored).artifact


@dataclass(frozen=True)
class _NoBench:
    """In place of the main process's bench, which times for all."""

    label: str

    def beside(self, baseline: Artifact) -> AbstractContextManager[Callable[[Artifact], Beside]]:
        _refuse()

    def layer_beside(self, baseline: "nn.Module", candidate: "nn.Module", inputs: "Tensor") -> Beside:
        _refuse()

    def part_ms(
        self,
        parts: "Sequence[Part]",
        placed: "Callable[[SideBySide, Mapping[str, Tensor]], Quantization] | None",
    ) -> list[float]:
        _refuse()


def _refuse() -> NoReturn:
    raise AssertionError("engines are timed within `Context.decided`, which the main process alone calls")
