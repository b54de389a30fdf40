"""Recipes as text: YAML to plain values that remember their lines, and back."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import JsonValue
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .errors import RecipeError

LARGEST_BYTES = 1_000_000
"""Recipes have a few kilobytes; what is larger is some other file."""
MOST_VALUES = 20_000
"""After aliases are followed: a few lines of nested aliases can stand for billions of values."""
DEEPEST = 50

Key = tuple[str | int, ...]
"""Where a value is in a recipe: keys and positions from the root."""


@dataclass
class Located:
    """Plain values, and where each was written."""

    value: JsonValue
    origins: dict[Key, str] = field(default_factory=dict[Key, str])
    """Such as ``a.yaml:12`` or ``--set seed=3``."""

    def origin(self, key: Key) -> str:
        """Where the value was written, or the nearest value around it that was."""
        while key not in self.origins and key:
            key = key[:-1]
        return self.origins.get(key, "recipe")


def path_text(key: Key) -> str:
    """As people write it, such as ``stages[1].recover.epochs``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2: ``1e-3`` is a number, ``yes`` and ``12:30`` are text, dates are text."""


_BREAKS = ("\x85", "\u2028", "\u2029")
"""Of YAML 1.1, and not of people: next line, line separator, paragraph separator."""


class _Dumper(yaml.SafeDumper):
    """Quotes whatever the loader here, or one of YAML 1.1, would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Equal settings are written out, not referred to."""
        return True

    def represent_str(self, data: str) -> ScalarNode:
        """In double quotes where there are line breaks that single quotes would fold."""
        style = '"' if any(each in data for each in _BREAKS) else None
        return cast(Any, self).represent_scalar("tag:yaml.org,2002:str", data, style=style)


def _resolve_as(name: str, pattern: str, first: list[str], *where: Any) -> None:
    """Plain text that matches `pattern` as a whole is of this type; `first` are the characters it may begin with."""
    for each in where:
        each.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"^(?:{pattern})$"), first)


cast(Any, _Dumper).add_representer(str, _Dumper.represent_str)
cast(Any, _Loader).yaml_implicit_resolvers = {}
_resolve_as("null", "~|null|Null|NULL|", ["~", "n", "N", ""], _Loader)
_resolve_as("bool", "true|True|TRUE|false|False|FALSE", list("tTfF"), _Loader)
_resolve_as("int", "[-+]?[0-9]+", list("-+0123456789"), _Loader)
_resolve_as(
    "float",
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    list("-+.0123456789"),
    _Loader,
    _Dumper,
)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "map", "seq")}


def yaml_text(value: JsonValue) -> str:
    """The value as YAML that `located` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_recipe_file(path: Path) -> Located:
    """The values of a recipe's file. RecipeError for one that is missing, too large, no YAML or no mapping."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such file; `potstill init` writes a recipe to begin with") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}; give the path of a recipe's file") from error
    if len(content) > LARGEST_BYTES:
        raise RecipeError(
            f"{path}: larger than {LARGEST_BYTES // 1_000_000} MB, which no recipe is; is it another file?"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: byte {error.start} is not UTF-8; save the recipe as UTF-8 text") from error
    found = located(text, str(path))
    if found.value is None:
        raise RecipeError(f"{path}: is empty; `potstill init` writes a recipe to begin with")
    if not isinstance(found.value, dict):
        raise RecipeError(
            f"{path}:1: must be a mapping with keys such as `data:` and `stages:`, is {kind(found.value)}"
        )
    return found


def located(text: str, name: str) -> Located:
    """The values of one YAML document; RecipeError names the lines of what cannot be read."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax_problem(error, name)) from error
    except (yaml.YAMLError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise RecipeError(f"{name}: is not YAML: {what}") from error
    if root is None:
        return Located(None)
    _check_size(root, name)
    reader = _Reader(loader, name)
    found = Located(reader.value(root, ()), reader.origins)
    if reader.problems:
        raise RecipeError("\n".join(reader.problems))
    return found


def kind(value: JsonValue) -> str:
    """What a value is, in words, with scalars shown."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _syntax_problem(error: yaml.MarkedYAMLError, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    problem = error.problem or "it cannot be parsed"
    if "'\\t'" in problem:
        return f"{where}: is not YAML: a tab begins a line; indent with spaces"
    if "expected a single document" in (error.context or ""):
        return f"{where}: holds a second document; a recipe is one, without `---` between"
    context = f" {error.context}" if error.context else ""
    return f"{where}: is not YAML:{context}{',' if context else ''} {problem}"


def _check_size(root: Node, name: str) -> None:
    """Refuse what is too large or too deep once its aliases are followed; each node is visited once."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node, depth: int) -> int:
        where = f"{name}:{node.start_mark.line + 1}"
        if id(node) in open_nodes:
            raise RecipeError(f"{where}: an alias refers to the value that it is in; write the value out")
        if depth > DEEPEST:
            raise RecipeError(f"{where}: nested deeper than {DEEPEST} levels, which no recipe is")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in _children(node))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    if size(root, 0) > MOST_VALUES:
        raise RecipeError(f"{name}: stands for over {MOST_VALUES:,} values once its aliases are followed; use fewer")


def _children(node: Node) -> Iterable[Node]:
    if isinstance(node, MappingNode):
        return [each for pair in cast("list[tuple[Node, Node]]", node.value) for each in pair]
    return cast("list[Node]", node.value) if isinstance(node, SequenceNode) else []


class _Reader:
    """Turns nodes into values, and collects where they were and what is wrong."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self._loader = loader
        self._name = name
        self.origins: dict[Key, str] = {}
        self.problems: list[str] = []

    def value(self, node: Node, key: Key) -> JsonValue:
        """The node's value; origins and problems are noted under `key`."""
        self.origins.setdefault(key, self._where(node))
        if node.tag not in _TAGS:
            self._problem(node, key, f"the YAML tag {node.tag} is not allowed; write a plain value")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, key)
        if isinstance(node, SequenceNode):
            children = cast("list[Node]", node.value)
            return [self.value(child, (*key, position)) for position, child in enumerate(children)]
        assert isinstance(node, ScalarNode)
        return self._scalar(node, key)

    def _mapping(self, node: MappingNode, key: Key) -> JsonValue:
        found: dict[str, JsonValue] = {}
        first: dict[str, Node] = {}
        for key_node, value_node in cast("list[tuple[Node, Node]]", node.value):
            name = self._key(key_node, key)
            if name is None:
                continue
            if name in first:
                line = first[name].start_mark.line + 1
                self._problem(key_node, (*key, name), f"is already given at line {line}; keep one of them")
                continue
            first[name] = key_node
            self.origins[(*key, name)] = self._where(key_node)
            found[name] = self.value(value_node, (*key, name))
        return found

    def _key(self, node: Node, key: Key) -> str | None:
        if isinstance(node, ScalarNode) and node.value == "<<" and node.style is None:
            self._problem(node, key, "merging with `<<` is not supported; write the keys out")
            return None
        if isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:str":
            return cast("str | None", self._scalar(node, key))
        self._problem(node, key, f"a key must be text, got {node.value if isinstance(node, ScalarNode) else 'a list'}")
        return None

    def _scalar(self, node: ScalarNode, key: Key) -> JsonValue:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        text = cast(str, node.value)
        try:
            match tag:
                case "str":
                    text.encode()  # raises for half a surrogate pair, which an escape can spell
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text)
                case "float" if math.isfinite(
                    number := float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
                ):
                    return number
                case _:
                    self._problem(node, key, f"must be a finite number, got {text}")
        except ValueError:
            self._problem(node, key, f"cannot be read as {tag}: {text[:60]!a}")
        return None

    def _where(self, node: Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _problem(self, node: Node, key: Key, what: str) -> None:
        self.problems.append(": ".join(filter(None, [self._where(node), path_text(key), what])))
