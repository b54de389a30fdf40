"""Facts about `--set path=value`."""

import pytest
from pydantic import JsonValue

from potstill.pipeline.errors import RecipeError
from potstill.pipeline.overrides import overridden
from potstill.pipeline.recipe_yaml import Located, located

RECIPE = """\
seed: 1
teacher: {model: "my.py:make"}
stages:
  - {stage: train, epochs: 2}
  - {stage: distill, epochs: 4}
  - {stage: distill, name: again, epochs: 6}
targets: [{runtime: onnxruntime}]
goals:
"""


def changed(*overrides: str) -> Located:
    return overridden(located(RECIPE, "a.yaml"), overrides)


def value(written: Located, *key: str | int) -> JsonValue:
    found = written.value
    for part in key:
        found = found[part]  # pyright: ignore[reportOptionalSubscript, reportArgumentType, reportCallIssue, reportIndexIssue]
    return found


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        changed(*overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "path", ["stages.1.epochs", "stages[1].epochs", "stages.distill.epochs", "stages[distill].epochs"]
)
def test_an_entry_is_reached_by_number_and_by_name(path: str) -> None:
    written = changed(f"{path}=3")
    assert value(written, "stages", 1, "epochs") == 3
    assert written.origin(("stages", 1, "epochs")) == f"--set {path}=3"
    assert written.origin(("stages", 1, "stage")) == "a.yaml:5"


def test_a_steps_own_name_comes_before_its_kind() -> None:
    assert value(changed("stages.again.epochs=3"), "stages", 2, "epochs") == 3


def test_a_target_is_reached_by_its_runtime() -> None:
    assert value(changed("targets.onnxruntime.threads=2"), "targets", 0, "threads") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3), ("1e-3", 0.001), ("text", "text"), ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}), ("", None), ("a=b", "a=b")],
)
def test_values_are_typed_as_in_yaml(text: str, expected: JsonValue) -> None:
    assert value(changed(f"seed={text}"), "seed") == expected


def test_what_the_recipe_left_out_is_made() -> None:
    written = changed("stages.train.recover.epochs=0", "goals.min_speedup=2", "data.source=digits")
    assert value(written, "stages", 0, "recover") == {"epochs": 0}
    assert value(written, "goals") == {"min_speedup": 2}
    assert value(written, "data") == {"source": "digits"}


def test_later_overrides_see_and_win_over_earlier_ones() -> None:
    written = changed("seed=2", "seed=3", "teacher.model={name: resnet}", "teacher.model.depth=8")
    assert value(written, "seed") == 3
    assert value(written, "teacher", "model") == {"name": "resnet", "depth": 8}
    assert written.origin(("teacher", "model", "name")) == "--set teacher.model={name: resnet}"


def test_the_recipe_given_stays_as_it_was() -> None:
    written = located(RECIPE, "a.yaml")
    overridden(written, ["stages.train.epochs=9", "seed=5"])
    assert written == located(RECIPE, "a.yaml")


def test_all_overrides_that_cannot_be_put_in_are_told() -> None:
    assert refusal(
        "stages.distil.epochs=3",
        "stages.7.epochs=3",
        "seed.x=3",
        "nothing",
        "=3",
        "seed=[1",
        "teacher.model.depth=2",
    ) == [
        "--set stages.distil.epochs=3: `stages` has no entry `distil`; did you mean `distill`? "
        "allowed: 0, 1, 2, train, distill, again",
        "--set stages.7.epochs=3: `stages` has no entry `7`; allowed: 0, 1, 2, train, distill, again",
        "--set seed.x=3: `seed` is 1, which has nothing inside to set",
        "--set nothing: write it as path=value, such as `--set stages.distill.epochs=3`",
        "--set =3: write it as path=value, such as `--set stages.distill.epochs=3`",
        "--set seed=[1:1: is not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        "--set teacher.model.depth=2: `teacher.model` is 'my.py:make', which has nothing inside to set",
    ]


def test_a_name_of_two_entries_is_refused() -> None:
    written = located("stages: [{stage: distill}, {stage: distill}]", "a.yaml")
    with pytest.raises(RecipeError, match=r"`distill` may be stages\[0\] and stages\[1\]; say which by its number"):
        overridden(written, ["stages.distill.epochs=3"])
