"""What a recipe can name, described by the docstrings of the classes that stand behind the names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from ..export.target import targets
from ..stages.knowledge.costs import measured_costs
from ..stages.knowledge.method import Method
from ..stages.knowledge.objective import methods
from .models import PythonModel, networks
from .recipe import source_choices, stage_choices


@dataclass(frozen=True)
class Entry:
    """One name."""

    name: str
    description: str
    keys: tuple[str, ...]
    """The settings that may stand beside it."""
    details: tuple[str, ...] = ()
    """More about it, a line each."""
    group: str = ""
    """What it is listed under."""


def entries(kind: str) -> list[Entry]:
    """Everything of a kind: stages, knowledge, models, data or runtimes."""
    match kind:
        case "stages":
            return list(_entries(stage_choices(), "stage"))
        case "knowledge":
            return [_method_entry(name, method) for name, method in methods().items()]
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


def _method_entry(name: str, method: type[Method]) -> Entry:
    details = [
        method.source,
        f"needs {', '.join(method.needs)} · weight {_default(method, 'weight'):g} beside a task weight of "
        f"{method.task_weight:g} · step {step_cost(name)}",
    ]
    if method.stays_at_inference:
        details.append("NOT FREE AT INFERENCE: what it adds to the student stays in the engine")
    return Entry(name, _first_sentence(method), tuple(method.model_fields), tuple(details), method.kind)


def step_cost(method: str) -> str:
    """The time of a training step relative to plain `kd`, such as ``1.31x of kd``, as it was measured."""
    costs = measured_costs()
    found = None if costs is None else costs.relative.get(method)
    return "not measured" if found is None else f"{found:.2f}x of kd"


def _default(method: type[Method], field: str) -> float:
    return float(method.model_fields[field].default)


def footnote(kind: str) -> str:
    """Where the numbers of a list come from; empty for lists without any."""
    costs = measured_costs()
    if kind != "knowledge" or costs is None:
        return ""
    return f"step times: {costs.pair}; {costs.machine}; {costs.date}; {costs.command}"


def knowledge_markdown() -> str:
    """All methods as Markdown tables, one a kind: the catalogue in the documentation."""
    lines: list[str] = []
    for kind in dict.fromkeys(method.kind for method in methods().values()):
        lines += [
            f"### {kind.capitalize()}",
            "",
            "| method | what is matched | needs | default weight (task) | step, × `kd` | source |",
            "|---|---|---|---|---|---|",
        ]
        for name, method in methods().items():
            if method.kind == kind:
                weight = f"{_default(method, 'weight'):g} ({method.task_weight:g})"
                stays = " **Not free at inference.**" if method.stays_at_inference else ""
                cost = step_cost(name).removesuffix("x of kd")
                lines.append(
                    f"| `{name}` | {_first_sentence(method)}{stays} | {', '.join(method.needs)} | {weight} | {cost} | "
                    f"{method.source} |"
                )
        lines.append("")
    return "\n".join([*lines, f"The {footnote('knowledge') or 'step times are not measured'}.", ""])


def _first_sentence(choice: type[BaseModel]) -> str:
    return (choice.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
