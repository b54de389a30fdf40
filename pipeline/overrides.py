"""`--set path=value`: changes of a recipe from the command line."""

import copy
import re
from collections.abc import Sequence
from typing import cast

from pydantic import JsonValue

from .errors import RecipeError
from .recipe_problems import nearest
from .recipe_yaml import Key, Located, kind, located, path_text

NAMES = ("name", "stage", "runtime")
"""The keys by which an entry of a list can be called."""

_PART = re.compile(r"[^.\[\]]+")


def overridden(written: Located, overrides: Sequence[str]) -> Located:
    """The recipe with every `path=value` put in, in order; RecipeError tells all that cannot be."""
    changed = Located(copy.deepcopy(written.value), dict(written.origins))
    problems: list[str] = []
    for override in overrides:
        try:
            _put(changed, override)
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(problems))
    return changed


def _put(changed: Located, override: str) -> None:
    origin = f"--set {override}"
    path, equals, text = override.partition("=")
    parts = _PART.findall(path)
    if not equals or not parts:
        raise RecipeError(f"{origin}: write it as path=value, such as `--set stages.distill.epochs=3`")
    value = located(text, origin).value
    key: Key = ()
    around = changed.value
    for number, part in enumerate(parts):
        step = _step(around, part, key, origin)
        key = (*key, step)
        if number == len(parts) - 1:
            _assign(around, step, value)
        else:
            around = _entered(around, step)
    for known in [known for known in changed.origins if known[: len(key)] == key]:
        del changed.origins[known]
    changed.origins[key] = origin


def _step(around: JsonValue, part: str, key: Key, origin: str) -> str | int:
    """The key or position that a part of the path means in the value `around`."""
    if isinstance(around, dict):
        return part
    if not isinstance(around, list):
        raise RecipeError(f"{origin}: `{path_text(key)}` is {kind(around)}, which has nothing inside to set")
    if part.isdecimal() and int(part) < len(around):
        return int(part)
    called = [_names(entry) for entry in around]
    matches = [position for position, names in enumerate(called) if part in names]
    if len(matches) == 1:
        return matches[0]
    if matches:
        where = " and ".join(path_text((*key, position)) for position in matches)
        raise RecipeError(f"{origin}: `{part}` may be {where}; say which by its number")
    names = [*(str(position) for position in range(len(around))), *(name for each in called for name in each)]
    raise RecipeError(
        f"{origin}: `{path_text(key)}` has no entry `{part}`; {nearest(part, list(dict.fromkeys(names)))}"
    )


def _names(entry: JsonValue) -> list[str]:
    """What an entry may be called: its own name before its kind."""
    return [str(entry[name]) for name in NAMES if name in entry][:1] if isinstance(entry, dict) else []


def _entered(around: JsonValue, step: str | int) -> JsonValue:
    """The value inside, made where the recipe left it out."""
    if isinstance(around, dict):
        inside = around.setdefault(str(step), {})
        if inside is None:
            inside = around[str(step)] = {}
        return inside
    return cast("list[JsonValue]", around)[cast(int, step)]


def _assign(around: JsonValue, step: str | int, value: JsonValue) -> None:
    if isinstance(around, dict):
        around[str(step)] = value
    else:
        cast("list[JsonValue]", around)[cast(int, step)] = value
