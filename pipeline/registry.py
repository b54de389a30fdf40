"""Choices that a recipe makes by name, found in the modules of a package: the value of a key, or a key itself."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Choice = TypeVar("Choice", bound=BaseModel)


def discovered(package: str, base: type[Choice], key: str | None = None) -> dict[str, type[Choice]]:
    """Every subclass of `base` that a module of `package` defines, by the default of its field `key`.

    Without a key, or where its field has no default, a class is called like its module. Abstract classes are left out.
    """
    parent = importlib.import_module(package)
    found: dict[str, type[Choice]] = {}
    for info in pkgutil.iter_modules(parent.__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, base)) or inspect.isabstract(value):
                continue
            if value.__module__ == module.__name__:
                default = value.model_fields[key].default if key else None
                found[default if isinstance(default, str) else info.name] = value
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class NameOf:
    """Reads the name of a choice from a mapping; a value that has none has no choice."""

    key: str
    choice_of: Callable[[str], str]

    @property
    def __name__(self) -> str:
        """Pydantic asks every discriminator for it."""
        return f"name_of_{self.key}"

    def __call__(self, value: Any) -> str | None:
        """The choice, or None where the key is missing or no text."""
        name = cast("Mapping[str, object]", value).get(self.key) if isinstance(value, Mapping) else None
        return self.choice_of(name) if isinstance(name, str) else None


def _itself(name: str) -> str:
    return name


class OneOf:
    """In ``Annotated[Base, OneOf(key, choices)]``: a mapping becomes the subclass that its `key` names.

    Type checkers see `Base`. An instance of `Base` is taken as it is, of whatever class. `choice_of` maps what the
    recipe says to a choice's name, where many values of the key mean the same choice.
    """

    def __init__(
        self, key: str, choices: Callable[[], Mapping[str, type[BaseModel]]], choice_of: Callable[[str], str] = _itself
    ) -> None:
        self._name_of = NameOf(key, choice_of)
        self._choices = choices

    def __get_pydantic_core_schema__(self, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(choice) for name, choice in self._choices().items()}
        tagged = core_schema.tagged_union_schema(choices, self._name_of)

        def instance_or_mapping(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, source) else validate(value)

        return core_schema.json_or_python_schema(
            json_schema=tagged,
            python_schema=core_schema.no_info_wrap_validator_function(instance_or_mapping, tagged),
            # By the instance's own class: the base knows none of the subclasses' fields.
            serialization=core_schema.simple_ser_schema("any"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        choices = cast("Mapping[str, CoreSchema]", cast(Any, schema)["json_schema"]["choices"])
        return {"oneOf": [self._titled(name, handler(each), handler) for name, each in choices.items()]}

    def _titled(self, name: str, reference: JsonSchemaValue, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The choice under its name in recipes; without the key, it would match mappings that are meant for others."""
        key = self._name_of.key
        choice = handler.resolve_ref_schema(reference)
        choice["title"] = name
        choice["required"] = list(dict.fromkeys([key, *choice.get("required", [])]))
        choice["properties"][key].pop("default", None)
        return reference


class Named:
    """In ``Annotated[Base, Named(choices)]``: ``{name: {…settings}}`` becomes the subclass of that name.

    Type checkers see `Base`. An instance of `Base` is taken as it is; a bare name takes every default.
    """

    def __init__(self, choices: Callable[[], Mapping[str, type[BaseModel]]]) -> None:
        self._choices = choices

    def __get_pydantic_core_schema__(self, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = dict(self._choices())
        fields: dict[str, Any] = {name: (choice | None, None) for name, choice in choices.items()}
        config = ConfigDict(extra="forbid", json_schema_extra=_exactly_one)
        entry = create_model(f"{source.__name__} by name", __config__=config, **fields)

        def named(value: BaseModel | str) -> BaseModel:
            if isinstance(value, str):
                return choices[value]()
            if len(value.model_fields_set) != 1:
                example = f"`{next(iter(choices))}: {{}}`"
                raise ValueError(f"each entry names exactly one of {', '.join(choices)}, such as {example}")
            (name,) = value.model_fields_set
            return cast(BaseModel, getattr(value, name) or choices[name]())

        def instance_or_entry(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, source) else validate(value)

        def dumped(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
            settings = value.model_dump(mode=info.mode, by_alias=info.by_alias, exclude_none=info.exclude_none)
            return {name: settings for name, choice in choices.items() if choice is type(value)}

        forms = {"a name": core_schema.literal_schema(list(choices)), "an entry": handler.generate_schema(entry)}
        validated = core_schema.no_info_after_validator_function(
            named, core_schema.tagged_union_schema(forms, _entry_form)
        )
        return core_schema.json_or_python_schema(
            json_schema=validated,
            python_schema=core_schema.no_info_wrap_validator_function(instance_or_entry, validated),
            serialization=core_schema.plain_serializer_function_ser_schema(dumped, info_arg=True),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(cast(Any, schema)["json_schema"])


def _entry_form(value: Any) -> str | None:
    if isinstance(value, str):
        return "a name"
    return "an entry" if isinstance(value, Mapping) else None


def _exactly_one(schema: dict[str, Any]) -> None:
    schema["minProperties"] = schema["maxProperties"] = 1
    for described in schema["properties"].values():
        described.pop("default", None)
