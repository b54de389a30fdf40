"""The recipe: what a YAML file asks for, as frozen values."""

import importlib.resources
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..export.target import INT8, Target, scheme_of, targets
from ..stages.knowledge.tasks import learning_outputs, problems_without_classes
from ..stages.stage import Stage
from .data import DataSource, sources
from .errors import RecipeError
from .models import PYTHON_PATTERN, ModelReference
from .networks.hf import HuggingFace
from .overrides import overridden
from .recipe_problems import MISFIT, nearest, problems_of
from .recipe_yaml import Key, Located, located, read_recipe_file, yaml_text
from .registry import OneOf, discovered
from .task import CLASSIFICATION, TASKS
from .teacher_cache import CacheSettings

PYTHON_SOURCE = "my_data.py:make"
"""The choice among the data sources that stands for any `file.py:function`."""
PYTHON_TASK = "my_task.py:make"
"""Likewise among the tasks."""
RESERVED = "teacher"
"""The name of the step that takes over given weights."""


def stage_choices() -> dict[str, type[Stage]]:
    """Every stage by its name in a recipe: one file in the stages package each."""
    return discovered("potstill.stages", Stage, "stage")


def source_choices() -> dict[str, type[DataSource]]:
    """Every data source by what a recipe may say; the last one is any function of the user's own."""
    found = sources()
    return {name: each for name, each in found.items() if name != "python"} | {PYTHON_SOURCE: found["python"]}


def _source_choice(name: str) -> str:
    return PYTHON_SOURCE if ":" in name else name


def _known_task(name: str) -> str:
    if name not in TASKS and not re.fullmatch(PYTHON_PATTERN, name):
        raise ValueError(f"must be one of the allowed; {nearest(name, [*TASKS, PYTHON_TASK])}")
    return name


def _with_knowledge(stages: tuple[Stage, ...], info: ValidationInfo) -> tuple[Stage, ...]:
    """Of a task without classes, what is learnt by default is the teacher's outputs as they are."""
    if info.data.get("task", CLASSIFICATION) == CLASSIFICATION:
        return stages
    return tuple(learning_outputs(stage) for stage in stages)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Teacher(_Settings):
    """The network that everything is distilled from and measured against."""

    model: ModelReference
    weights: Path | None = None
    """A .safetensors file; a relative path starts at the recipe's folder. Without, the first stage trains it."""
    license: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Whose its weights are and under which licence, in your words; bundles carry it as it is."""
    cache: CacheSettings = CacheSettings()
    """How its outputs are stored, where samples look the same again: without `augment`, or with `data.views`."""


class Goals(_Settings):
    """What the final engine of the first target must reach, at its first batch size; each may be left out."""

    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Against the teacher's fp32 engine, as a share of all test samples: 0.005 is half a point. Of a classification."""
    max_worsening: Annotated[float, Field(ge=0)] | None = None
    """How much worse the metric may be than the teacher's fp32 engine's, as a share of it: at 0.05, a regression's RMSE
    may rise by a twentieth. For every task but a classification."""
    min_speedup: Annotated[float, Field(gt=0)] | None = None
    """The teacher's fp32 engine's p50 over this one's."""
    max_p50_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds."""
    max_p99_ms: Annotated[float, Field(gt=0)] | None = None
    """Milliseconds."""
    max_file_bytes: Annotated[int, Field(gt=0)] | None = None
    """Of the engine's file."""


TargetList = Annotated[tuple[Annotated[Target, OneOf("runtime", targets)], ...], Field(min_length=1)]


class _TargetsAlone(_Settings):
    targets: TargetList


class Recipe(_Settings):
    """A run, from the data to the goals."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """The run's folder is called like it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 17
    """Everything random derives from it."""
    task: Annotated[
        str,
        AfterValidator(_known_task),
        WithJsonSchema({"anyOf": [{"enum": list(TASKS)}, {"pattern": PYTHON_PATTERN}]}),
    ] = "classification"
    """`regression` for targets that are numbers, or `my_task.py:make`, a function that returns a task of your own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of training; `auto` is bf16 where the processor multiplies it, else fp32."""
    compile: bool = False
    """Whether trainings go through `torch.compile` where a trial of each shows that it pays. What the trial found is
    said; results differ from those without by rounding."""
    data: Annotated[DataSource, OneOf("source", source_choices, _source_choice)]
    teacher: Teacher
    stages: Annotated[tuple[Annotated[Stage, OneOf("stage", stage_choices)], ...], AfterValidator(_with_knowledge)]
    """In this order, each on what the one before it made."""
    targets: TargetList
    """What the last step is exported for; every step is measured on the first one."""
    goals: Goals = Goals()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _demand_fit(_misfits(self))
        return self


def _demand_fit(misfits: Iterator[tuple[Key, str]]) -> None:
    problems = [
        InitErrorDetails(type=PydanticCustomError(MISFIT, "{text}", {"text": text}), loc=key, input=None)
        for key, text in misfits
    ]
    if problems:
        raise ValidationError.from_exception_data("Recipe", problems)


def _misfits(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """What no part of the recipe can know by itself."""
    stages = recipe.stages
    first: dict[str, int] = {}
    # What a network that brings its own weights lacks is only known when they are read.
    brings_weights = isinstance(recipe.teacher.model, HuggingFace)
    if recipe.teacher.weights is None and not brings_weights and (not stages or stages[0].stage != "train"):
        yield ("teacher",), "has no weights: give `weights: file.safetensors`, or begin `stages` with a `train` stage"
    for position, stage in enumerate(stages):
        problem = stage.problem_behind(stages[:position])
        if problem is not None:
            yield ("stages", position), problem
        yield from _name_taken(stage.step_name, position, first)
        yield from _unknown_steps(stages, position)
    yield from _target_misfits(recipe)
    yield from _task_misfits(recipe)


def _task_misfits(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """What is for classes, or for all tasks but those with classes."""
    goals, classifies = recipe.goals, recipe.task == CLASSIFICATION
    if classifies and goals.max_worsening is not None:
        yield ("goals", "max_worsening"), "is not for a classification; give `max_accuracy_drop`, in shares of samples"
    if classifies:
        return
    if goals.max_accuracy_drop is not None:
        yield (
            ("goals", "max_accuracy_drop"),
            f"is for a classification, and `task: {recipe.task}` has no accuracy; give `max_worsening: 0.05`, a share "
            "of the teacher's metric",
        )
    if recipe.teacher.cache.top_k is not None:
        yield (
            ("teacher", "cache", "top_k"),
            f"keeps the largest log-probabilities of classes, which `task: {recipe.task}` need not have; leave it out",
        )
    if recipe.task != "regression":
        return  # outputs of the user's own task may be logits: known once the data is read
    for position, stage in enumerate(recipe.stages):
        for place, problem in problems_without_classes(stage):
            yield ("stages", position, *place), problem


def _name_taken(name: str, position: int, first: dict[str, int]) -> Iterator[tuple[Key, str]]:
    if name == RESERVED:
        yield ("stages", position), f"no step can be called `{RESERVED}`; give it another `name`"
    elif first.setdefault(name, position) != position:
        yield (
            ("stages", position),
            f"stages[{first[name]}] is called `{name}`, too; give one of them another `name:`, such as `{name}-2`",
        )


def _unknown_steps(stages: Sequence[Stage], position: int) -> Iterator[tuple[Key, str]]:
    known = [RESERVED, *(stage.step_name for stage in stages[:position])]
    for place, name in stages[position].earlier_steps():
        if name not in known:
            yield ("stages", position, *place), f"`{name}` is no earlier step; {nearest(name, known)}"


def _target_misfits(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    yield from _misfits_of_targets(recipe.targets, recipe.stages)
    built = {scheme_of(precision) for target in recipe.targets for precision in target.precision}
    for scheme in _quantized_to(recipe.stages):
        if scheme not in built:
            text = f"no target has {scheme}, so what `quantize` does would be lost; add {scheme} to a `precision`"
            yield ("targets",), text


def _quantized_to(stages: Sequence[Stage]) -> list[str]:
    return [stage.quantizes_to for stage in stages if stage.quantizes_to is not None]


def _misfits_of_targets(entries: Sequence[Target], stages: Sequence[Stage]) -> Iterator[tuple[Key, str]]:
    given = _quantized_to(stages)
    first: dict[str, int] = {}
    for position, target in enumerate(entries):
        key: Key = ("targets", position)
        for precision in target.precision:
            if scheme_of(precision) not in (None, *given):
                yield (*key, "precision"), _no_stage_for(precision, given)
        if first.setdefault(target.label, position) != position:
            yield key, f"is the same as targets[{first[target.label]}] ({target.label}); put them into one"


def _no_stage_for(precision: str, given: Sequence[str]) -> str:
    wanted = scheme_of(precision)
    if given:
        needs = f"{precision} needs a `quantize` stage with `scheme: {wanted}`"
        return f"{needs}, and the recipe's has `scheme: {given[0]}`; change one of them"
    scheme = "" if wanted == INT8 else f" with `scheme: {wanted}`"
    return f"{precision} needs a `quantize` stage{scheme}; add one to `stages`, or leave {precision} out"


def recipe_file(name: str) -> Path:
    """The file of a recipe given by its path, or by the bare name of one that comes with potstill."""
    path = Path(name)
    if not path.exists() and path.name == name and not path.suffix:
        packaged = Path(str(importlib.resources.files("potstill.configs"))) / f"{name}.yaml"
        if packaged.is_file():
            return packaged
    return path


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and put `path=value` overrides in; RecipeError has a line for each thing that is wrong."""
    written = read_recipe_file(path)
    return recipe_from(overridden(written, overrides))


def recipe_from(written: Located) -> Recipe:
    """The recipe in plain values; the RecipeError tells where each wrong one was written."""
    try:
        # As strict JSON: a list becomes a tuple and text a path, but neither `true` nor '3' becomes a number.
        return Recipe.model_validate_json(json.dumps(written.value), strict=True)
    except ValidationError as error:
        raise RecipeError("\n".join(problems_of(error, Recipe, written))) from error


def targets_from(texts: Sequence[str], recipe: Recipe) -> tuple[Target, ...]:
    """More targets for a recipe's models, each as YAML like an entry of `targets`; RecipeError as for a recipe."""
    entries = [located(text, f"--target {text}").value for text in texts]
    origins: dict[Key, str] = {("targets", position): f"--target {text}" for position, text in enumerate(texts)}
    written = Located({"targets": entries}, origins)
    try:
        found = _TargetsAlone.model_validate_json(json.dumps(written.value), strict=True).targets
        _demand_fit(_misfits_of_targets(found, recipe.stages))
    except ValidationError as error:
        raise RecipeError("\n".join(problems_of(error, _TargetsAlone, written))) from error
    return found


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; it loads as an equal one."""
    values = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    first = ("stage", "name")
    values["stages"] = [
        {key: stage[key] for key in sorted(stage, key=lambda key: first.index(key) if key in first else len(first))}
        for stage in values["stages"]
    ]
    return yaml_text(values)
