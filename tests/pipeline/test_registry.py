"""Facts about choices that are made by name."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from potstill.pipeline.registry import OneOf, discovered


class Shape(BaseModel, frozen=True, extra="forbid"):
    shape: str


class Circle(Shape, frozen=True):
    """A round one."""

    shape: Literal["circle"] = "circle"
    radius: float


class Square(Shape, frozen=True):
    """A straight one."""

    shape: Literal["square"] = "square"
    side: float = 1.0


class Drawing(BaseModel, frozen=True, extra="forbid"):
    shapes: tuple[Annotated[Shape, OneOf("shape", lambda: {"circle": Circle, "square": Square})], ...]


def test_the_key_picks_the_class_and_the_class_checks_the_rest() -> None:
    drawing = Drawing.model_validate_json('{"shapes": [{"shape": "circle", "radius": 2}, {"shape": "square"}]}')
    assert drawing.shapes == (Circle(radius=2), Square(side=1))
    with pytest.raises(ValidationError, match="radius"):
        Drawing.model_validate_json('{"shapes": [{"shape": "circle"}]}')
    with pytest.raises(ValidationError, match="union_tag"):
        Drawing.model_validate_json('{"shapes": [{"shape": "oval"}, {"radius": 1}]}')


def test_all_fields_of_the_choice_are_dumped_and_load_again() -> None:
    drawing = Drawing(shapes=(Circle(radius=2), Square()))
    assert drawing.model_dump(mode="json") == {
        "shapes": [{"shape": "circle", "radius": 2.0}, {"shape": "square", "side": 1.0}]
    }
    assert Drawing.model_validate_json(drawing.model_dump_json()) == drawing


def test_an_instance_of_an_unlisted_class_is_taken_as_it_is() -> None:
    class Point(Shape, frozen=True):
        shape: Literal["point"] = "point"

    assert Drawing(shapes=(Point(),)).shapes == (Point(),)


def test_the_json_schema_lists_titled_choices_that_need_the_key() -> None:
    schema = TypeAdapter(Drawing).json_schema()
    references = schema["properties"]["shapes"]["items"]["oneOf"]
    choices: list[Any] = [schema["$defs"][each["$ref"].rpartition("/")[2]] for each in references]
    assert [choice["title"] for choice in choices] == ["circle", "square"]
    assert [choice["description"] for choice in choices] == ["A round one.", "A straight one."]
    assert [choice["required"] for choice in choices] == [["shape", "radius"], ["shape"]]


def test_one_file_in_the_package_is_all_that_a_new_choice_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "forms_for_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base.py").write_text(
        "from abc import ABC, abstractmethod\nfrom pydantic import BaseModel\n\n"
        "class Form(BaseModel, ABC):\n    form: str\n    @abstractmethod\n    def draw(self): ...\n"
    )
    line = "from forms_for_a_test.base import Form\nclass {name}(Form):\n    form: {field}\n    def draw(self): ...\n"
    (package / "line.py").write_text(line.format(name="Line", field="str = 'dash'"))
    (package / "custom.py").write_text(line.format(name="Custom", field="str"))
    monkeypatch.syspath_prepend(tmp_path)
    base = __import__("forms_for_a_test.base", fromlist=["Form"]).Form
    found = discovered("forms_for_a_test", base, "form")
    assert {name: each.__name__ for name, each in found.items()} == {"custom": "Custom", "dash": "Line"}
    for name in [name for name in sys.modules if name.startswith("forms_for_a_test")]:
        del sys.modules[name]
