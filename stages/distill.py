"""Distillation: a new student that learns from the run's teacher."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Blueprint
from ..pipeline.models import ModelReference, PythonModel, derive, resolve
from ..pipeline.networks.network import Network
from ..pipeline.seeding import seeded
from ..pipeline.training import Schedule, fit
from .knowledge.objective import Distillation, DistillationObjective
from .stage import Context, Stage


class StudentOfTeacher(BaseModel):
    """A smaller relative of the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: Annotated[Literal["teacher"], Field(alias="from")]
    width: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the teacher's channels; rounded to what the network takes."""
    depth: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the teacher's blocks; rounded to whole ones."""


def _form(value: Any) -> str:
    if isinstance(value, StudentOfTeacher):
        return "relative"
    return "relative" if isinstance(value, Mapping) and ("from" in value or "source" in value) else "model"


Student = Annotated[
    Annotated[StudentOfTeacher, Tag("relative")] | Annotated[ModelReference, Tag("model")], Discriminator(_form)
]


class Distill(Stage, Schedule, Distillation, frozen=True, extra="forbid"):
    """Train a new, smaller student on the teacher's knowledge and the labels."""

    stage: Literal["distill"] = "distill"
    student: Student
    """A model reference, or `{from: teacher, width: 0.5, depth: 0.5}`."""

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The trained student; of `artifact`, only the shapes of inputs and outputs are used."""
        reference = self._reference(context)
        blueprint = Blueprint(
            model=reference,
            input_shapes=artifact.blueprint.input_shapes,
            num_classes=artifact.blueprint.num_classes,
        )
        with seeded(context.seed, "student"):
            student = blueprint.build()
        context.journal.fact("student", reference.model_dump(mode="json"))
        if self.epochs:
            fit(student, DistillationObjective(self, student, context), self, context, name="distill")
        return Artifact(model=student.eval(), blueprint=blueprint, lineage=artifact.lineage)

    def _reference(self, context: Context) -> Network | PythonModel:
        if isinstance(self.student, StudentOfTeacher):
            teacher = context.require_teacher().artifact.blueprint.model
            return derive(teacher, width=self.student.width, depth=self.student.depth)
        return resolve(self.student, context.directory)

    def order_problem(self, earlier: Sequence[Stage]) -> str | None:
        """A new student knows nothing of an earlier quantization."""
        if self.is_quantized_by(earlier):
            return "begins a new student in float, so what `quantize` did would be lost; put it before `quantize`"
        return None

    def untrained(self) -> Self:
        """The same student with its first weights."""
        return self.model_copy(update={"epochs": 0})
