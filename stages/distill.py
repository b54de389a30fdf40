"""Distillation: a new student that learns from the run's teacher, or from whatever its knowledge names."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Blueprint
from ..pipeline.models import ModelReference, PythonModel, derive, resolve
from ..pipeline.networks.network import Network
from ..pipeline.seeding import seeded
from ..pipeline.teacher import Teacher
from .inheritance import inherit
from .knowledge.objective import TEACHER, DistillationTraining, grown, learn
from .stage import Context, Stage
from .whitening import whitened


class StudentOfTeacher(BaseModel):
    """A smaller relative of the teacher."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: Annotated[Literal["teacher"], Field(alias="from")]
    width: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the teacher's channels; rounded to what the network takes."""
    depth: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the teacher's blocks; rounded to whole ones."""
    weights: Literal["new", "teacher"] = "new"
    """`teacher`: begins with the teacher's weights, evenly spaced channels of its first blocks (Xu et al. 2024)."""


def _form(value: Any) -> str:
    if isinstance(value, StudentOfTeacher):
        return "relative"
    return "relative" if isinstance(value, Mapping) and ("from" in value or "source" in value) else "model"


Student = Annotated[
    Annotated[StudentOfTeacher, Tag("relative")] | Annotated[ModelReference, Tag("model")], Discriminator(_form)
]


class Distill(Stage, DistillationTraining, frozen=True, extra="forbid"):
    """Train a new, smaller student on the teacher's knowledge and the labels."""

    stage: Literal["distill"] = "distill"
    student: Student
    """A model reference, or `{from: teacher, width: 0.5, depth: 0.5}`."""
    first_layer: Literal["learned", "whitened"] = "learned"
    """`whitened`: the first convolution decorrelates the pixels of the training images' patches, and is not trained
    here; behind it a network learns in far fewer epochs (Jordan 2024, arXiv 2404.00498)."""
    generations: Annotated[int, Field(ge=1)] = 1
    """How many students, one after the other: the first learns from `teachers`, each other one from the one before it
    (born-again networks, Furlanello et al. 2018, arXiv 1805.04770). The last one is the step's."""

    @model_validator(mode="after")
    def _generations_learn_from_each_other(self) -> Self:
        if self.generations > 1 and not any(method.learns_from_teacher for method in self.knowledge):
            raise ValueError("`generations` are taught by the one before, but `knowledge` has no method with a teacher")
        return self

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The trained student; of `artifact`, only the shapes of inputs and outputs are used."""
        reference = self._reference(context)
        blueprint = Blueprint(
            model=reference,
            input_shapes=artifact.blueprint.input_shapes,
            num_classes=artifact.blueprint.num_classes,
            vocabulary=artifact.blueprint.vocabulary,
            front_end=artifact.blueprint.front_end,
        )
        context.journal.fact("student", reference.model_dump(mode="json"))
        made = self._generation(1, blueprint, context, context.teacher)
        later = self.model_copy(update={"teachers": (TEACHER,), "combine": "average"})
        for number in range(2, self.generations + 1):
            made = later._generation(number, blueprint, context, context.teacher_of(made))
        return replace(made, lineage=artifact.lineage)

    def _generation(self, number: int, blueprint: Blueprint, context: Context, teacher: Teacher | None) -> Artifact:
        with seeded(context.seed, "student", *([number] if number > 1 else [])):
            student = blueprint.build()
        if self._inherits:
            inherit(student, context.require_teacher().artifact.model)
        context = replace(context, teacher=teacher)
        blueprint = grown(student, self, blueprint, context)
        name = "distill" if self.generations == 1 else f"generation-{number}"
        with whitened(student, context.data) if self.first_layer == "whitened" else nullcontext():
            learn(student, self, blueprint, context, name=name)
        return Artifact(model=student.eval(), blueprint=blueprint)

    @property
    def _inherits(self) -> bool:
        return isinstance(self.student, StudentOfTeacher) and self.student.weights == "teacher"

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

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Its teachers but the run's own."""
        return self.named_teachers()

    def untrained(self) -> Self:
        """The same student with its first weights."""
        return self.model_copy(update={"epochs": 0})
