"""The `knowledge:` of a recipe, and the loss it makes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ...pipeline.blueprint import Blueprint
from ...pipeline.data import Batch
from ...pipeline.errors import StageError
from ...pipeline.registry import Named, discovered
from ...pipeline.seeding import derive, seeded
from ...pipeline.sparsity import zeros_held
from ...pipeline.taps import Outputs
from ...pipeline.teacher import Teacher
from ...pipeline.training import Moment, Objective, Schedule, fast_biases, fit, move, on_device
from ..stage import Context
from .anatomy import Anatomy, LayerError
from .method import OF_CLASSES, Method, Need, Observation, Taught, Term, Views
from .pair import Pair
from .response.kd import SoftTargets

if TYPE_CHECKING:  # it imports torchao, which takes seconds
    from ...pipeline.fake_quantization import FakeQuantizedModel

KINDS = ("response", "feature", "relation", "transformer", "scheme")
ROUNDING = 1e-9
"""What weights may differ by and count as equal."""
REHEARSED = 4
"""Samples of a rehearsed step."""
WITHOUT_CONFIDENCE = "`combine: confidence` weighs teachers by the classes they know; use `combine: average`"
TEACHER = "teacher"
"""What the run's own teacher is called among `teachers`."""


def methods() -> dict[str, type[Method]]:
    """Every method by its name in a recipe: one module each, in the folder of its kind."""
    found: dict[str, type[Method]] = {}
    for kind in KINDS:
        found |= discovered(f"{__package__}.{kind}", Method)
    return found


def name_of(method: Method) -> str:
    """The method's name in a recipe."""
    return type(method).__module__.rpartition(".")[2]


def without_classes(method: Method) -> str | None:
    """Why a method cannot serve a task without classes, and what can; None where it can."""
    if not method.needs_classes():
        return None
    others = ", ".join(f"`{name}`" for name, each in methods().items() if not each.needs_classes() and name != "logits")
    needs = " and ".join(sorted(OF_CLASSES.intersection(method.needs)))
    return (
        f"`{name_of(method)}` is for classes, of which it needs {needs}, and this task has none; use `logits`, the "
        f"squared error to the teacher's outputs, or what lies inside the networks: {others}"
    )


class Distillation(BaseModel, frozen=True, extra="forbid"):
    """What a training learns from: the knowledge of one teacher or several, and the task itself."""

    knowledge: tuple[Annotated[Method, Named(methods)], ...] = (SoftTargets(),)
    task_weight: Annotated[float, Field(ge=0)] | None = None
    """Multiplies the task's own loss, such as the cross-entropy; by default what the methods ask for."""
    teachers: tuple[str, ...] = (TEACHER,)
    """Names of earlier steps whose models teach; `teacher` is the run's own."""
    combine: Literal["average", "confidence"] = "average"
    """How the losses of several teachers count: alike, or in each sample by how well each teacher knows the label."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.knowledge and self.task_weight == 0:
            raise ValueError("nothing to learn from: give `knowledge` a term or `task_weight` a positive number")
        if not self.teachers and any(method.learns_from_teacher for method in self.knowledge):
            raise ValueError("`teachers` is empty, but `knowledge` has a method that learns from one")
        if len(set(self.teachers)) < len(self.teachers):
            raise ValueError("`teachers` names the same step twice")
        if self.combine == "confidence" and len(self.teachers) < 2:
            raise ValueError("`combine: confidence` weighs teachers against each other; name two or more in `teachers`")
        return self

    @property
    def balanced_task_weight(self) -> float:
        """The weight of the task's own loss: as given, else the least that the methods' weights are meant beside."""
        if self.task_weight is not None:
            return self.task_weight
        return min((method.task_weight for method in self.knowledge), default=1.0)

    @model_validator(mode="after")
    def _labels_keep_their_weight(self) -> Self:
        taken = sum(method.taken_from_task for method in self.knowledge)
        if taken > self.balanced_task_weight + ROUNDING:
            takers = ", ".join(f"`{name_of(method)}`" for method in self.knowledge if method.taken_from_task)
            raise ValueError(
                f"{takers} moves up to {taken:g} of the labels' weight to the student's own predictions, but "
                f"`task_weight` is {self.balanced_task_weight:g}; give `task_weight: {max(taken, 1.0):g}`"
            )
        return self

    def named_teachers(self, *place: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """The teachers that are earlier steps, each with its place among the keys of a stage."""
        for position, name in enumerate(self.teachers):
            if name != TEACHER:
                yield (*place, "teachers", position), name


class DistillationTraining(Schedule, Distillation, frozen=True, extra="forbid"):
    """How long to train, and what to learn from meanwhile."""


def learn(
    model: nn.Module,
    training: DistillationTraining,
    blueprint: Blueprint,
    context: Context,
    *,
    name: str,
    through: "FakeQuantizedModel | None" = None,
    beside: Callable[[Objective], Objective] | None = None,
) -> None:
    """Train `model` in place, or `through`, its graph under quantizers, in place of it.

    `beside` gives the objective terms of its own. The zeros of 2:4 sparse layers stay zero. For 0 epochs, one step is
    rehearsed on a copy instead, which finds what would stop the first one. Raises StageError where a method of the
    `knowledge:` list cannot serve the model and its teachers, TrainingError where the schedule does not fit the model.
    """
    if training.epochs:
        objective: Objective = DistillationObjective(training, model, blueprint, context)
        if through is not None:
            through.mark(objective.student_taps)
        if beside is not None:
            objective = beside(objective)
        sparse = [f"{path}.weight" for path in blueprint.sparse_layers]
        with zeros_held(model if through is None else through.graph, sparse):
            fit(through or model, objective, training, context, name=name)
        return
    fast_biases(model, training, name)
    if context.teacher is None:
        return
    objective = DistillationObjective(training, model, blueprint, context, rehearsal=True).to(context.device).train()
    index = torch.arange(min(REHEARSED, len(context.data.train)))
    batch = context.data.train.batch(index, view=context.data.view(context.seed, 0))
    objective.terms(deepcopy(model).train(), context.to_device(batch), Moment(0, 1, 0))
    move(model, torch.device("cpu"), torch.contiguous_format)


@dataclass(frozen=True)
class _Entry:
    """One entry of the list with its terms, one for each teacher."""

    name: str
    method: Method
    terms: tuple[Term, ...]


class DistillationObjective(Objective):
    """The task's loss and the terms of a `knowledge:` list, each weighted."""

    def __init__(
        self,
        settings: Distillation,
        model: nn.Module,
        blueprint: Blueprint,
        context: Context,
        *,
        rehearsal: bool = False,
    ) -> None:
        """For a rehearsal, every term has its full weight at any moment, and teachers run live."""
        super().__init__()
        self._task_weight = settings.balanced_task_weight
        self._rehearsal = rehearsal
        self._settings = settings
        self._context = context
        if settings.combine == "confidence" and not context.data.classes:
            raise StageError(WITHOUT_CONFIDENCE)
        self._teachers = tuple(self._chosen_teachers())
        self._entries = tuple(self._made_entries(model.to(context.device), blueprint))
        self._terms = nn.ModuleList(term for entry in self._entries for term in entry.terms)
        context.journal.fact("task weight", self._task_weight)
        context.journal.fact(
            "knowledge",
            [
                {
                    "term": entry.name,
                    "method": name_of(entry.method),
                    "weight": entry.method.weight,
                    "taps": ", ".join(str(match) for match in entry.terms[0].matches),
                }
                for entry in self._entries
            ],
        )

    def finish(self) -> None:
        """Tell the journal how often the teachers' stored outputs served."""
        usages = [teacher.usage() for teacher in self._teachers]
        asked, computed = sum(usage.asked for usage in usages), sum(usage.computed for usage in usages)
        if asked:
            rate = 1 - min(computed / asked, 1.0)
            stored = sum(teacher.stored_bytes for teacher in self._teachers)
            fact = {"asked": asked, "computed": computed, "hit rate": rate, "bytes": stored}
            self._context.journal.fact("teacher cache", fact)

    @property
    def student_taps(self) -> set[str]:
        """Where the terms read the student's maps."""
        return _taps(self._entries, "student")

    def _chosen_teachers(self) -> Iterator[Teacher]:
        if not any(method.learns_from_teacher for method in self._settings.knowledge):
            return
        context = self._context
        for name in self._settings.teachers:
            known = context.artifacts.get(name)
            if name == TEACHER:
                yield context.require_teacher()
            elif known is None:
                names = ", ".join([TEACHER, *context.artifacts])
                raise StageError(f"`teachers` names `{name}`, which is no earlier step; there are {names}")
            else:
                yield context.teacher_of(known)

    def _made_entries(self, model: nn.Module, blueprint: Blueprint) -> Iterator[_Entry]:
        context = self._context
        student = Anatomy(model, _example(context))
        anatomies = [Anatomy(teacher.model(context), _example(context)) for teacher in self._teachers]
        counts: dict[str, int] = {}
        for method in self._settings.knowledge:
            problem = None if context.data.classes else without_classes(method)
            if problem is not None:
                raise StageError(problem)
            counts[name_of(method)] = number = counts.get(name_of(method), 0) + 1
            name = name_of(method) if number == 1 else f"{name_of(method)}#{number}"
            seed = derive(context.seed, "knowledge", name)
            against = anatomies if method.learns_from_teacher else [student]
            pairs = [Pair(name_of(method), student, each, context, seed, blueprint, servants) for each in against]
            with seeded(seed, "term"):
                entry = _Entry(name, method, tuple(method.term(pair) for pair in pairs))
            yield entry

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """`task`, and one term for each entry of the list; a method that appears twice is numbered.

        What a method trains for itself, such as peers, is a term of its own, which no weight multiplies.
        """
        context = self._context
        weights = {
            entry.name: entry.method.weight if self._rehearsal else entry.method.weight_at(moment.progress)
            for entry in self._entries
        }
        active = [entry for entry in self._entries if weights[entry.name]]
        student = context.outputs(model, batch.inputs, _taps(active, "student"))
        seen = list(self._observations(model, student, batch, moment, active))
        found: dict[str, Tensor] = {}
        if self._task_weight:
            found["task"] = self._task_weight * self._task_loss(student, batch, active, seen)
        confidences = self._confidences(seen, batch)
        for entry in self._entries:
            if entry not in active:
                found[entry.name] = torch.zeros((), device=batch.target.device)
                continue
            taught, own = _taught(entry, seen, confidences if entry.method.learns_from_teacher else None)
            found[entry.name] = weights[entry.name] * taught
            if own is not None:
                found[f"{entry.name} itself"] = own
        return found

    def _observations(
        self, model: nn.Module, student: Outputs, batch: Batch, moment: Moment, active: Sequence[_Entry]
    ) -> Iterator[Observation]:
        context = self._context
        learning = [entry for entry in active if entry.method.learns_from_teacher]
        for number, teacher in enumerate(self._teachers if learning else ()):
            taps = {match.teacher for entry in learning for match in entry.terms[number].matches}
            outputs = (
                teacher.live_outputs(batch, taps, context) if self._rehearsal else teacher.outputs(batch, taps, context)
            )
            again = self._look_again(model, teacher, batch)
            yield Observation(batch, moment, student, outputs, model, teacher.model(context), again)
        if not learning:
            yield Observation(batch, moment, student, student, model, None)

    def _look_again(self, model: nn.Module, teacher: Teacher, batch: Batch) -> Callable[[], Views]:
        context = self._context

        def look() -> Views:
            strong = context.to_device(context.data.train.strong(batch))
            mine = context.outputs(model, strong.inputs)
            with torch.no_grad():
                theirs = context.outputs(teacher.model(context), strong.inputs)
            return Views(mine, theirs)

        return look

    def _task_loss(
        self, student: Outputs, batch: Batch, active: Sequence[_Entry], seen: Sequence[Observation]
    ) -> Tensor:
        """Of the batch, and where a method has a second view, of that one too."""
        loss = self._context.task.loss(student.logits, batch.target)
        if any("two views" in entry.method.needs for entry in active):
            loss = loss + self._context.task.loss(seen[0].strong.student.logits, batch.target)
        return loss

    def _confidences(self, seen: Sequence[Observation], batch: Batch) -> Tensor | None:
        """How much each teacher counts in each sample, (teachers, B); None where all count alike."""
        if self._settings.combine == "average" or len(self._teachers) < 2 or len(seen) < 2:
            return None
        return confidence_weights(torch.stack([each.teacher.logits for each in seen]), batch.target)


def grown(model: nn.Module, settings: Distillation, blueprint: Blueprint, context: Context) -> Blueprint:
    """Make the changes of a new student's structure that methods ask for, in place; returns the blueprint with them."""
    for method in settings.knowledge:
        if method.stays_at_inference:
            blueprint = _grown_for(method, model, blueprint, context)
    return blueprint


def _grown_for(method: Method, model: nn.Module, blueprint: Blueprint, context: Context) -> Blueprint:
    name = name_of(method)
    teacher = Anatomy(context.require_teacher().model(context), _example(context))
    model.to(context.device)
    bare = Pair(name, Anatomy(model, _example(context)), teacher, context, context.seed, blueprint, servants)
    with seeded(context.seed, "knowledge", name, "edits"):
        for edit in method.edits(bare):
            edit.apply(model)
            blueprint = blueprint.with_edit(edit)
    method.take_over(replace(bare, student=Anatomy(model, _example(context)), blueprint=blueprint))
    context.progress.say(f"{name}: NOT FREE AT INFERENCE, what it adds to the student stays in the engine")
    return blueprint


def _example(context: Context) -> dict[str, Tensor]:
    return {name: on_device(tensor, context.device) for name, tensor in context.data.example().items()}


def confidence_weights(logits: Tensor, target: Tensor) -> Tensor:
    """Teachers' weights in each sample, (K, B) from logits (K, B, C): (1 - softmax_k(cross-entropy of k)) / (K - 1).

    CA-MKD, Zhang et al. 2022, arXiv 2201.00007. They sum to one over the K ≥ 2 teachers.
    """
    errors = torch.stack([functional.cross_entropy(each, target, reduction="none") for each in logits])
    return (1 - errors.softmax(0)) / (len(logits) - 1)


def _taps(active: Sequence[_Entry], whose: Literal["student", "teacher"]) -> set[str]:
    return {getattr(match, whose) for entry in active for term in entry.terms for match in term.matches}


def _taught(entry: _Entry, seen: Sequence[Observation], confidences: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The mean loss over the teachers, and the sum of what the terms train for themselves."""
    losses: list[Tensor] = []
    own: list[Tensor] = []
    for number, (term, observation) in enumerate(zip(entry.terms, seen, strict=False)):
        found: Taught = term(observation)
        loss, trained = found if isinstance(found, tuple) else (found, None)
        if confidences is not None:
            if loss.ndim == 0:
                raise StageError(
                    f"`{name_of(entry.method)}` compares samples with each other, so teachers cannot be weighed in "
                    "each sample: use `combine: average`, or a method whose loss each sample has its own of, as `kd`"
                )
            loss = len(entry.terms) * confidences[number] * loss
        losses.append(loss.mean())
        if trained is not None:
            own.append(trained)
    return torch.stack(losses).mean(), torch.stack(own).sum() if own else None


def servants(pair: Pair) -> list[str]:
    """The names of the methods that can serve a pair, by what its networks have."""
    offered: set[Need] = {"outputs"}
    if pair.context.data.classes:
        offered |= {"logits", "labels", "gradients", "two views"}
    for need, find in _FINDERS.items():
        if all(_has(find, anatomy) for anatomy in (pair.student, pair.teacher)):
            offered.add(need)
    return [name for name, method in methods().items() if offered.issuperset(method.needs)]


_FINDERS: Mapping[Need, Callable[[Anatomy], Sequence[str]]] = {
    "maps": Anatomy.ends,
    "features": Anatomy.features,
    "linear head": Anatomy.last_map,
    "attention": Anatomy.attentions,
    "tokens": Anatomy.blocks,
}


def _has(find: Callable[[Anatomy], Sequence[str]], anatomy: Anatomy) -> bool:
    try:
        return bool(find(anatomy))
    except LayerError:
        return False
