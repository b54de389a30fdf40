"""Facts about recipes as text."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.pipeline.errors import RecipeError
from potstill.pipeline.recipe_yaml import LARGEST_BYTES, located, path_text, read_recipe_file, yaml_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(TEXT, inside, max_size=4), max_leaves=12
)


def refusal(content: str | bytes, folder: Path) -> str:
    """What is said about a file of this content, without the folder."""
    file = folder / "a.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeError) as caught:
        read_recipe_file(file)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("017", 17),
        ("+3", 3),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("12:30", "12:30"),
        ("2026-01-31", "2026-01-31"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("null", None),
    ],
)
def test_plain_values_are_read_by_yaml_1_2(text: str, value: object) -> None:
    assert located(f"key: {text}", "a.yaml").value == {"key": value}


@given(VALUES)
def test_written_values_are_read_back_equal(value: object) -> None:
    assert located(yaml_text({"key": value}), "a.yaml").value == {"key": value}  # pyright: ignore[reportArgumentType]


@given(st.text(alphabet="ab:-[]{}&*!<>|'\"%@`#,? \n\t01.~\\u"))
def test_any_text_is_read_or_refused_with_a_recipe_error(text: str) -> None:
    # Anything else than a RecipeError would come through.
    with suppress(RecipeError):
        located(text, "a.yaml")


def test_every_value_knows_its_line() -> None:
    found = located("a: 1\nb:\n  - c: 2\n    d: {e: 3}\n  - x", "a.yaml")
    assert {path_text(key): origin for key, origin in found.origins.items()} == {
        "": "a.yaml:1",
        "a": "a.yaml:1",
        "b": "a.yaml:2",
        "b[0]": "a.yaml:3",
        "b[0].c": "a.yaml:3",
        "b[0].d": "a.yaml:4",
        "b[0].d.e": "a.yaml:4",
        "b[1]": "a.yaml:5",
    }
    assert found.origin(("b", 0, "d", "missing", "deeper")) == "a.yaml:4"


def test_an_alias_stands_for_its_value() -> None:
    found = located("a: &x {epochs: 2}\nb: *x", "a.yaml")
    assert found.value == {"a": {"epochs": 2}, "b": {"epochs": 2}}


def test_all_duplicate_keys_are_told_with_both_lines(tmp_path: Path) -> None:
    text = "name: a\nseed: 1\nname: b\ngoals:\n  x: 1\n  x: 2\n"
    assert refusal(text, tmp_path).splitlines() == [
        "a.yaml:3: name: is already given at line 1; keep one of them",
        "a.yaml:6: goals.x: is already given at line 5; keep one of them",
    ]


def test_nested_aliases_that_explode_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 60)]
    assert "values once its aliases are followed" in refusal("\n".join(lines), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty; `potstill init` writes"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "a.yaml:1: must be a mapping with keys such as `data:` and `stages:`, is a list"),
        ("just text", "must be a mapping with keys such as `data:` and `stages:`, is 'just text'"),
        ("a: 1\nb: [1, 2\nc: 3\n", "a.yaml:3: is not YAML"),
        ("a:\n\tb: 1\n", "a.yaml:2: is not YAML: a tab begins a line; indent with spaces"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2: holds a second document"),
        (b"a: 1\nb: caf\xe9\n", "a.yaml:2: byte 11 is not UTF-8; save the recipe as UTF-8 text"),
        (b"\x00\x01\x02\x7fELF", "a.yaml: is not YAML"),
        ("a: &a [*a]\n", "a.yaml:1: an alias refers to the value that it is in"),
        ("a: *nowhere\n", "a.yaml:1: is not YAML: found undefined alias 'nowhere'"),
        ("a: !!python/object/apply:os.getcwd []\n", "a.yaml:1: a: the YAML tag"),
        ("a: !!binary aGVsbG8=\n", "a.yaml:1: a: the YAML tag"),
        ("a: .nan\n", "a.yaml:1: a: must be a finite number, got .nan"),
        ("a: -.INF\n", "a.yaml:1: a: must be a finite number, got -.INF"),
        ("a: 1e999\n", "a.yaml:1: a: must be a finite number, got 1e999"),
        ("a: " + "9" * 5000, "a.yaml:1: a: cannot be read as int: '9999"),
        ('a: "\\ud800"\n', "a.yaml:1: a: cannot be read as str"),
        ("1: a\n", "a.yaml:1: a key must be text, got 1"),
        ("[a, b]: c\n", "a.yaml:1: a key must be text, got a list"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "a.yaml:3: c: merging with `<<` is not supported"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 50 levels"),
        ("a: " + "[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_recipe_is_refused_in_plain_words(content: str | bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(content, tmp_path)


def test_a_file_of_10_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert "larger than 1 MB" in refusal(b"a: 1\n" * 2_000_000, tmp_path)


def test_a_file_just_too_large_is_refused(tmp_path: Path) -> None:
    assert "larger than 1 MB" in refusal(b"#" * (LARGEST_BYTES + 1), tmp_path)
    assert "is empty" in refusal(b"#" * LARGEST_BYTES, tmp_path)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no\.yaml: no such file; `potstill init` writes a recipe"):
        read_recipe_file(tmp_path / "no.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_recipe_file(tmp_path)
