"""What a stage says in its own words, laid out by shape alone: lists of like things become tables."""

from collections.abc import Iterator, Mapping
from typing import cast

from pydantic import JsonValue

from . import wording
from .tables import Cell, Column, Table, cells, words

TINY = 1e-3
"""Below, four decimals would no longer show three digits, or even call the value zero."""


def fact_tables(facts: Mapping[str, JsonValue]) -> Iterator[Table]:
    """First one table of the short facts, then one for each list of objects."""
    short = [(name, value) for name, value in facts.items() if not _is_rows(value)]
    if short:
        rows = tuple(cells((_spoken(name), _told(name, value))) for name, value in short)
        yield Table("", (words("Fact"), words("Value")), rows)
    for name, value in facts.items():
        if _is_rows(value):
            yield _rows_table(_spoken(name), cast("list[dict[str, JsonValue]]", value))


def fact_text(value: JsonValue) -> str:
    """A value in one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(fact_text(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(_named(name, item) for name, item in value.items()) or "none"
    return value or "–"


def _named(name: str, value: JsonValue) -> str:
    # A size in bytes has its unit beside it, and needs no name.
    return _told(name, value) if name == "bytes" else f"{_spoken(name)} {_told(name, value)}"


def _told(name: str, value: JsonValue) -> str:
    """With the unit that the value's name says it has."""
    if name == "hit rate" and isinstance(value, float):
        return f"{fact_text(100 * value)} %"
    if name == "bytes" and _is_number(value):
        return wording.size(cast("int", value))
    return fact_text(value)


def _is_rows(value: JsonValue) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) and row for row in value)


def _rows_table(name: str, rows: list[dict[str, JsonValue]]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {key: all(_is_number(row.get(key, 0)) for row in rows) for key in keys}
    columns = tuple(Column(_headed(key), numeric=numeric[key]) for key in keys)
    decimals = {key: _decimals(row.get(key) for row in rows) for key in keys if numeric[key]}
    body = tuple(
        tuple(Cell(_figure(row[key], decimals.get(key)) if key in row else "–") for key in keys) for row in rows
    )
    return Table(name.capitalize(), columns, body)


def _figure(value: JsonValue, decimals: int | None) -> str:
    if decimals and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.{decimals}f}"
    return fact_text(value)


def _decimals(values: Iterator[JsonValue]) -> int:
    """Enough for the value that needs most of them, up to 4; none for a column of whole or of tiny numbers."""
    known = [value for value in values if isinstance(value, float)]
    if any(0 < abs(value) < TINY for value in known):
        return 0
    texts = [f"{value:.4f}".rstrip("0") for value in known]
    return max((len(text.partition(".")[2]) for text in texts), default=0)


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _headed(name: str) -> str:
    """At the beginning of a line; abbreviations stay as they are."""
    spoken = _spoken(name)
    return spoken[:1].upper() + spoken[1:]


def _spoken(name: str) -> str:
    return name.replace("_", " ")
