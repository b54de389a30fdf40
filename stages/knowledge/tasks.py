"""What a recipe's task means for its `knowledge:` lists: what is learnt by default, and what cannot be learnt."""

from collections.abc import Iterator
from typing import TypeVar

from pydantic import BaseModel

from .objective import WITHOUT_CONFIDENCE, Distillation, without_classes
from .response.logits import RawLogits

Settings = TypeVar("Settings", bound=BaseModel)
Place = tuple[str | int, ...]


def learning_outputs(settings: Settings) -> Settings:
    """A stage, or a part of one, whose default knowledge is the teacher's outputs themselves, by the squared error."""
    changes: dict[str, object] = {
        name: learning_outputs(value) for name, value in settings if isinstance(value, Distillation)
    }
    if isinstance(settings, Distillation) and "knowledge" not in settings.model_fields_set:
        changes["knowledge"] = (RawLogits(),)
    return settings.model_copy(update=changes) if changes else settings


def problems_without_classes(settings: BaseModel) -> Iterator[tuple[Place, str]]:
    """What a stage would learn that needs classes, each with its place among the stage's keys."""
    if isinstance(settings, Distillation):
        for position, method in enumerate(settings.knowledge):
            problem = without_classes(method)
            if problem is not None:
                yield ("knowledge", position), problem
        if settings.combine == "confidence":
            yield ("combine",), WITHOUT_CONFIDENCE
    for name, value in settings:
        if isinstance(value, Distillation):
            yield from (((name, *place), problem) for place, problem in problems_without_classes(value))
