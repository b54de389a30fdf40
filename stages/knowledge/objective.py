"""The `knowledge:` of a recipe, and the loss it makes."""

from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from ...pipeline.data import Batch
from ...pipeline.errors import StageError
from ...pipeline.training import Objective, on_device
from ..stage import Context
from .feature import HintLoss
from .matching import Taps, matched_ends, output_shapes, require_layers
from .response import soft_targets


class SoftTargets(BaseModel, frozen=True, extra="forbid"):
    """The teacher's softened outputs (Hinton et al. 2015)."""

    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(gt=0)] = 0.9
    """Multiplies T²·KL."""


class LayerPair(BaseModel, frozen=True, extra="forbid"):
    """Two layers by module path."""

    student: str
    teacher: str


class Hint(BaseModel, frozen=True, extra="forbid"):
    """The teacher's feature maps (FitNets, Romero et al. 2015), through projectors that are dropped afterwards."""

    layers: Literal["auto"] | tuple[LayerPair, ...] = "auto"
    """`auto`: the ends of the resolution stages of both networks."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the mean squared error."""


class Knowledge(BaseModel, frozen=True, extra="forbid"):
    """One entry of a `knowledge:` list: the name of a method and its settings."""

    kd: SoftTargets | None = None
    hint: Hint | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            allowed = ", ".join(type(self).model_fields)
            raise ValueError(f"each entry names exactly one of {allowed}, such as `- kd: {{temperature: 4}}`")
        return self


class Distillation(BaseModel, frozen=True, extra="forbid"):
    """What a training learns from: the teacher's knowledge, and the task itself."""

    knowledge: tuple[Knowledge, ...] = (Knowledge(kd=SoftTargets()),)
    task_weight: Annotated[float, Field(ge=0)] = 0.1
    """Multiplies the task's own loss: for classification, the cross-entropy with the labels."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.knowledge and self.task_weight == 0:
            raise ValueError("nothing to learn from: give `knowledge` a term or `task_weight` a positive number")
        return self


class DistillationObjective(Objective):
    """The task's loss and the terms of a `knowledge:` list, each weighted."""

    def __init__(self, settings: Distillation, model: nn.Module, context: Context) -> None:
        super().__init__()
        self._settings = settings
        self._context = context
        self._hints = nn.ModuleList(
            self._hint_loss(entry.hint, model) for entry in settings.knowledge if entry.hint is not None
        )

    def _hint_loss(self, hint: Hint, model: nn.Module) -> HintLoss:
        context = self._context
        inputs = {name: on_device(tensor, context.device) for name, tensor in context.data.example().items()}
        teacher = context.require_teacher().model(context)
        theirs = output_shapes(teacher, inputs)
        mine = output_shapes(model.to(context.device), inputs)
        if hint.layers == "auto":
            return HintLoss(matched_ends(mine, theirs), mine, theirs, context.seed)
        require_layers(model, [pair.student for pair in hint.layers], "student", mine)
        require_layers(teacher, [pair.teacher for pair in hint.layers], "teacher", theirs)
        for pair in hint.layers:
            if len(mine[pair.student]) != len(theirs[pair.teacher]):
                raise StageError(
                    f"`hint`: `{pair.student}` gives {len(mine[pair.student])} dimensions and `{pair.teacher}` "
                    f"{len(theirs[pair.teacher])}: pair maps with maps, vectors with vectors"
                )
        return HintLoss([(pair.student, pair.teacher) for pair in hint.layers], mine, theirs, context.seed)

    def terms(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`task`, and one term for each entry of the list; a method that appears twice is numbered."""
        hints = [hint for hint in self._hints if isinstance(hint, HintLoss)]
        with Taps(model, {path for hint in hints for path, _ in hint.pairs}) as mine:
            outputs = model(*batch.inputs.values()).float()
        found: dict[str, Tensor] = {}
        if self._settings.task_weight:
            found["task"] = self._settings.task_weight * self._context.task.loss(outputs, batch.target)
        theirs = self._teacher_maps(batch, {path for hint in hints for _, path in hint.pairs})
        remaining = iter(hints)
        for entry in self._settings.knowledge:
            if entry.kd is not None:
                logits = self._context.require_teacher().logits(batch, self._context)
                _add(found, "kd", entry.kd.weight * soft_targets(outputs, logits, entry.kd.temperature))
            if entry.hint is not None:
                _add(found, "hint", entry.hint.weight * next(remaining)(mine.outputs, theirs))
        return found

    @torch.no_grad()
    def _teacher_maps(self, batch: Batch, paths: set[str]) -> dict[str, Tensor]:
        if not paths:
            return {}
        teacher = self._context.require_teacher().model(self._context)
        with Taps(teacher, paths) as taps:
            teacher(*batch.inputs.values())
        return taps.outputs


def _add(terms: dict[str, Tensor], name: str, value: Tensor) -> None:
    number = sum(key.split("#")[0] == name for key in terms)
    terms[f"{name}#{number + 1}" if number else name] = value
