"""What every stage is, and what it is given."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, Field, JsonValue

from ..pipeline.artifact import Artifact
from ..pipeline.bench import Aim, Bench
from ..pipeline.errors import StageError
from ..pipeline.files import write_atomically
from ..pipeline.teacher import Teacher
from ..pipeline.training import TrainingContext


@dataclass(frozen=True, kw_only=True)
class Context(TrainingContext):
    """What a stage uses and does not own."""

    directory: Path
    """The recipe's folder, where its relative paths start."""
    teacher: Teacher | None
    """The run's frozen teacher; None while the run is still making it."""
    artifacts: Mapping[str, Artifact]
    """The artifacts of the earlier steps, by step name."""
    bench: Bench
    """Times engines for the run's first target while the stage decides."""

    def decided(self, name: str, decide: Callable[[], JsonValue]) -> JsonValue:
        """What `decide` returns, kept beside the step's checkpoints under `name`.

        A measurement comes out a little different each time; a step that goes on after a kill must go on with what it
        had decided, or its checkpoints would not fit. Of several processes the main one decides, by itself.
        """
        return self.processes.told(lambda: self._decided_here(name, decide))

    def _decided_here(self, name: str, decide: Callable[[], JsonValue]) -> JsonValue:
        file = self.checkpoints / f"{name}.json"
        if file.exists():
            return json.loads(file.read_bytes())
        decision = decide()
        write_atomically(file, json.dumps(decision).encode())
        return decision

    def require_teacher(self) -> Teacher:
        """The teacher, or a StageError for a stage that came before there was one."""
        if self.teacher is None:
            raise StageError(
                "there is no teacher yet: give `teacher.weights`, or begin `stages` with a `train` stage that makes it"
            )
        return self.teacher

    def teacher_of(self, artifact: Artifact) -> Teacher:
        """An earlier step's artifact as a teacher."""
        return Teacher(artifact) if self.teacher is None else self.teacher.of(artifact)


class Stage(BaseModel, ABC, frozen=True, extra="forbid"):
    """One step of a recipe; its fields are its YAML keys. A subclass in a module of this package is found by itself."""

    stage: str
    name: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = None
    """What the step is called in folders and reports; the stage's own name unless given."""

    @property
    def step_name(self) -> str:
        """The name of the step: `name` where given, else the stage's."""
        return self.name or self.stage

    compresses: ClassVar[bool] = False
    """Whether it is there to make the engine faster or smaller, which the report then holds it to."""
    aim: ClassVar[Aim] = "speed"
    """Which of the two."""

    keeps_sharing: ClassVar[bool] = False
    """Whether weights that share values by an earlier `cluster` still share them behind it."""

    keeps_zeros: ClassVar[bool] = False
    """Whether the zeros of 2:4 sparsity outlast it."""

    @property
    def quantizes_to(self) -> str | None:
        """The precision of the engines of a model that this stage has quantized; None where it does not quantize."""
        return None

    @property
    def decides_by_engine(self) -> bool:
        """Whether its artifact depends on what engines were measured to be: on target and machine."""
        return False

    @abstractmethod
    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """Make a new artifact; the given one stays as it is."""

    @abstractmethod
    def untrained(self) -> Self:
        """A copy that trains for no epoch: its `run` is the rehearsal that `check` makes before hours of training."""

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The names of the earlier steps that it needs, each with its place among the stage's keys."""
        return iter(())

    @staticmethod
    def is_quantized_by(earlier: Sequence["Stage"]) -> bool:
        """Whether the model comes quantized from `earlier`."""
        return any(stage.quantizes_to is not None for stage in earlier)

    def order_problem(self, earlier: Sequence["Stage"]) -> str | None:
        """A sentence that says why this stage cannot follow `earlier`, or None."""
        return None

    def problem_behind(self, earlier: Sequence["Stage"]) -> str | None:
        """What is wrong with this stage's place: its `order_problem`, or what an earlier one made and it would undo."""
        before = {stage.stage for stage in earlier}
        if not self.keeps_sharing and "cluster" in before:
            return (
                "gives weights values of their own again, which `cluster` has made share a few; put `cluster` behind it"
            )
        if not self.keeps_zeros and "sparsify" in before:
            mend = "keep one of the two" if self.stage == "cluster" else "put `sparsify` behind it"
            return f"`{self.stage}` does not keep the zeros of `sparsify`; {mend}"
        return self.order_problem(earlier)
