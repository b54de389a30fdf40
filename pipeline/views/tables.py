"""Tables as values, which the terminal, Markdown and the pages each draw in their own way."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Tone = Literal["plain", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table."""

    text: str
    detail: str = ""
    """A second, quieter piece, such as an interval or a reason."""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Column:
    """A column's head, and how its cells stand in it."""

    title: str
    unit: str = ""
    numeric: bool = True
    """Right-aligned with figures of one width."""


@dataclass(frozen=True)
class Table:
    """Rows under columns; a row's first cell is its head."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def only(self, *titles: str) -> "Table":
        """The same table with fewer columns, for where there is little room."""
        kept = [position for position, column in enumerate(self.columns) if column.title in titles]
        return replace(
            self,
            columns=tuple(self.columns[position] for position in kept),
            rows=tuple(tuple(row[position] for position in kept) for row in self.rows),
        )

    def without_unmeasured(self) -> "Table":
        """A column of which nothing was measured, for one reason, becomes a sentence of the note."""
        kept: list[str] = []
        sentences = [self.note] if self.note else []
        for position, column in enumerate(self.columns):
            told = {row[position] for row in self.rows}
            missing = next(iter(told)) if len(told) == 1 else None
            if missing is not None and missing == not_measured(missing.detail):
                sentences.append(f"{column.title}: {missing.text} ({missing.detail}).")
            else:
                kept.append(column.title)
        return replace(self.only(*kept), note=" ".join(sentences))


def words(title: str) -> Column:
    """A column of words."""
    return Column(title, numeric=False)


def figures(title: str, unit: str = "") -> Column:
    """A column of numbers in one unit."""
    return Column(title, unit)


def cells(texts: Iterable[str]) -> tuple[Cell, ...]:
    """Plain cells."""
    return tuple(Cell(text) for text in texts)


def not_measured(reason: str) -> Cell:
    """Never a zero and never a blank."""
    return Cell("not measured", reason, "quiet")
