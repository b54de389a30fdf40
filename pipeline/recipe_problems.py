"""What is wrong with a recipe, in words: where it is, what it must be, what it is, and what was probably meant."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from .recipe_yaml import Key, Located, kind, path_text
from .registry import NameOf

MUST_BE = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "path_type": "a path",
}
"""By pydantic's name of the error."""

MISFIT = "misfit"
"""The type of the errors that say how parts of a recipe do not fit each other."""

Schema = Mapping[str, Any]
"""A node of pydantic's core schema, of any of its fifty types."""


def problems_of(error: ValidationError, model: type[BaseModel], written: Located) -> list[str]:
    """One line for each error, in the order of the recipe, such as ``a.yaml:12: seed: must be a number, got 'x'``."""
    lines: dict[str, None] = {}
    found = error.errors(include_url=False)
    for details in found:
        if details["type"] == "too_short" and any(_is_inside(each["loc"], details["loc"]) for each in found):
            continue  # the entries are there, but wrong, and are told one by one
        # Errors of our own are raised with the recipe's keys; pydantic's hold the names of choices as well.
        ours = details["type"] == MISFIT
        place = _Place(details["loc"], {}, {}) if ours else _place(details["loc"], model)
        origin = written.origin(place.key[:-1] if details["type"] == "missing" else place.key)
        lines[": ".join(filter(None, [origin, path_text(place.key), _sentence(details, place)]))] = None
    return list(lines)


def nearest(name: str, names: Collection[str]) -> str:
    """Which of the names was probably meant, and all of them."""
    close = difflib.get_close_matches(name.lower(), names, 1, cutoff=0.6)
    meant = f"did you mean `{close[0]}`? " if close else ""
    return f"{meant}allowed: {', '.join(names)}"


def _is_inside(location: Key, around: Key) -> bool:
    return len(location) > len(around) and location[: len(around)] == around


@dataclass(frozen=True)
class _Place:
    """Where an error is."""

    key: Key
    """In the recipe: without the names of choices that pydantic puts between keys."""
    around: Schema
    """The schema of the mapping that the last key is in."""
    schema: Schema
    """The schema of the value itself; empty where pydantic's is of another shape than expected."""


def _place(location: Sequence[str | int], model: type[BaseModel]) -> _Place:
    schema, definitions = _unwrapped(model.__pydantic_core_schema__, {})
    key: list[str | int] = []
    around: Schema = {}
    for part in location:
        inside, is_key = _inside(schema, part)
        if is_key:
            key.append(part)
            around = schema
        schema, definitions = _unwrapped(inside, definitions)
    return _Place(tuple(key), around, schema)


def _unwrapped(schema: Schema, definitions: Mapping[str, Schema]) -> tuple[Schema, Mapping[str, Schema]]:
    """Through the layers that add no part to an error's location."""
    while True:
        kind_of = schema.get("type")
        if kind_of == "definitions":
            definitions = {each["ref"]: each for each in schema["definitions"]}
        if kind_of == "definition-ref":
            schema = definitions[schema["schema_ref"]]
        elif kind_of == "json-or-python":
            schema = schema["json_schema"]
        elif "schema" in schema:
            schema = schema["schema"]
        else:
            return schema, definitions


def _inside(schema: Schema, part: str | int) -> tuple[Schema, bool]:
    """The schema one part of a location further on, and whether the part is a key of the recipe."""
    match schema.get("type"):
        case "model-fields":
            for name, each in schema["fields"].items():
                if part in (name, each.get("validation_alias")):
                    return each["schema"], True
        case "tagged-union":
            return schema["choices"].get(part, {}), False
        case "union":
            return {}, False
        case "tuple":
            return schema["items_schema"][0], True
        case "list":
            return schema.get("items_schema", {}), True
        case "dict":
            return schema.get("values_schema", {}), True
        case _:
            pass
    return {}, True


def _sentence(details: ErrorDetails, place: _Place) -> str:
    given = cast(JsonValue, details["input"])
    context = details.get("ctx", {})
    message = details["msg"]
    match details["type"]:
        case "extra_forbidden":
            return f"unknown key; {nearest(str(place.key[-1]), _keys(place.around))}"
        case "missing":
            return f"is missing; {_wanted(place.schema)}"
        case "union_tag_not_found" | "union_tag_invalid":
            return _no_choice(given, place.schema)
        case "literal_error":
            allowed = [str(value) for value in _literals(place.schema)]
            if len(allowed) == 1:
                return f"must be {allowed[0]}, got {kind(given)}"
            # Digits in common bring no number near another.
            names = nearest(given, allowed) if isinstance(given, str) else f"allowed: {', '.join(allowed)}"
            return f"must be one of the allowed, got {kind(given)}; {names}"
        case "too_short" | "too_long":
            least = "at least" if "min_length" in context else "at most"
            return f"must have {least} {context.get('min_length', context.get('max_length'))} entries"
        case "string_pattern_mismatch":
            return f"must be text of the form {context['pattern']}, got {kind(given)}"
        case "value_error":
            return f"{message.removeprefix('Value error, ')}{_shown(given)}"
        case name if name == MISFIT:
            return message
        case name if name in MUST_BE:
            return f"must be {MUST_BE[name]}, got {kind(given)}"
        case _:
            return f"{message.replace('Input should', 'must').replace('String should', 'must')}, got {kind(given)}"


def _shown(given: JsonValue) -> str:
    return "" if given is None or isinstance(given, dict | list) else f" (got {kind(given)})"


def _no_choice(given: JsonValue, schema: Schema) -> str:
    names = [str(name) for name in schema.get("choices", {})]
    name_of = schema.get("discriminator")
    if not isinstance(name_of, NameOf):
        return f"must be {' or '.join(names)}, got {kind(given)}"
    if not isinstance(given, dict):
        return f"must be a mapping with the key `{name_of.key}`, got {kind(given)}; allowed: {', '.join(names)}"
    if name_of.key not in given:
        return f"the key `{name_of.key}` is missing; allowed: {', '.join(names)}"
    name = given[name_of.key]
    return f"`{name_of.key}: {name}` is unknown; {nearest(str(name), names)}"


def _keys(schema: Schema) -> list[str]:
    fields = cast("dict[str, Schema]", schema.get("fields", {}))
    return [str(each.get("validation_alias", name)) for name, each in fields.items()]


def _wanted(schema: Schema) -> str:
    """What a missing value must be, in words."""
    words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "tuple": "a list"}
    kind_of = str(schema.get("type"))
    if kind_of == "literal":
        return f"allowed: {', '.join(str(value) for value in _literals(schema))}"
    if kind_of == "tagged-union" and isinstance(name_of := schema["discriminator"], NameOf):
        return f"it must be a mapping with the key `{name_of.key}`: {', '.join(map(str, schema['choices']))}"
    return f"it must be {words.get(kind_of, 'a mapping')}"


def _literals(schema: Schema) -> Iterator[object]:
    yield from schema.get("expected", ())
