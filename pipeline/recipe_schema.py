"""The JSON schema of recipes, which editors complete and explain keys from."""

import ast
import inspect
import textwrap
from functools import cache
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from .recipe import Recipe


def json_schema() -> dict[str, Any]:
    """The schema, draft 2020-12, of a recipe with all stages, sources and runtimes that are installed."""
    schema = Recipe.model_json_schema(by_alias=True, schema_generator=_WithFieldDocstrings)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "potstill recipe"}


class _WithFieldDocstrings(GenerateJsonSchema):
    """Describes each key by the docstring below its field."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """The model's schema, its properties described."""
        found = super().model_schema(schema)
        model = cast("type[BaseModel]", schema["cls"])
        for name, field in model.model_fields.items():
            described = found.get("properties", {}).get(field.alias or name)
            text = field_docstrings(model).get(name)
            if described is not None and text is not None:
                described.setdefault("description", text)
        return found


@cache
def field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """By field, the string literal below it, in the class itself or in one that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            found |= _docstrings_in(each)
    return found


def _docstrings_in(model: type[BaseModel]) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    except (OSError, TypeError):  # a class made at a prompt has no source
        return {}
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found
