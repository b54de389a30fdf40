"""What a recipe can name, described by the docstrings of the classes that stand behind the names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from pydantic import BaseModel

from ..export.target import targets
from ..stages.knowledge.objective import Knowledge
from .models import PythonModel, networks
from .recipe import source_choices, stage_choices


@dataclass(frozen=True)
class Entry:
    """One name."""

    name: str
    description: str
    keys: tuple[str, ...]
    """The settings that may stand beside it."""


def entries(kind: str) -> list[Entry]:
    """Everything of a kind: stages, knowledge, models, data or runtimes."""
    match kind:
        case "stages":
            return list(_entries(stage_choices(), "stage"))
        case "knowledge":
            return list(_entries(_knowledge(), ""))
        case "models":
            return list(_entries({**networks(), "my_models.py:make_teacher": PythonModel}, "name"))
        case "data":
            return list(_entries(source_choices(), "source"))
        case _:
            return list(_entries(targets(), "runtime"))


def _entries(choices: Mapping[str, type[BaseModel]], key: str) -> Iterator[Entry]:
    for name, choice in choices.items():
        keys = (field.alias or field_name for field_name, field in choice.model_fields.items())
        yield Entry(name, _first_sentence(choice), tuple(each for each in keys if each != key))


def _knowledge() -> dict[str, type[BaseModel]]:
    """The methods of a `knowledge:` list by name."""
    return {name: get_args(field.annotation)[0] for name, field in Knowledge.model_fields.items()}


def _first_sentence(choice: type[BaseModel]) -> str:
    return (choice.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
