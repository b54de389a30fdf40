"""The report as GitHub's Markdown."""

from collections.abc import Iterator

from ..report import Report, StepReport
from . import engine_tables, ranking, report_tables
from .fact_tables import fact_tables
from .tables import Cell, Column, Table
from .terms import terms_of, terms_table


def report_markdown(report: Report) -> str:
    """Everything but the charts."""
    return "\n\n".join(_parts(report)) + "\n"


def _parts(report: Report) -> Iterator[str]:
    yield f"# {escaped(report.name)}"
    yield escaped(report_tables.headline_sentence(report))
    if fastest := ranking.ranking_sentence(report):
        yield escaped(fastest)
    for sentence in report_tables.warning_sentences(report):
        yield f"**{escaped(sentence)}**"
    for table in report_tables.tables_of(report):
        yield table_markdown(table)
    engine = engine_tables.audited(report)
    if engine is not None and engine.audit is not None:
        yield f"## Precision audit: {escaped(engine.target)}"
        yield escaped(engine_tables.audit_sentence(engine.audit))
        yield table_markdown(engine_tables.audit_table(engine.audit), level=3)
    for step in report.steps:
        yield from _step_parts(step)
    yield "## Recipe"
    yield _fenced(report.recipe, "yaml")
    yield table_markdown(report_tables.run_table(report))
    yield table_markdown(report_tables.machine_table(report.machine))
    yield "## How the numbers were taken"
    yield "\n".join(f"- {escaped(sentence)}" for sentence in report_tables.method_sentences(report))


def _step_parts(step: StepReport) -> Iterator[str]:
    terms = terms_of(step)
    if not (step.facts or terms):
        return
    yield f"## {escaped(step.name)}"
    for table in fact_tables(step.facts):
        yield table_markdown(table, level=3)
    if terms:
        yield table_markdown(terms_table(terms), level=3)


def table_markdown(table: Table, level: int = 2) -> str:
    """A heading, the table and its note; details stand in brackets after what they belong to."""
    head = [escaped(_head(column)) for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [_row(head), _row(rules), *(_row([_cell(cell) for cell in row]) for row in table.rows)]
    parts = [f"{'#' * level} {escaped(table.title)}"] if table.title else []
    parts.append("\n".join(lines))
    if table.note:
        parts.append(escaped(table.note))
    return "\n\n".join(parts)


def _head(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _row(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _cell(cell: Cell) -> str:
    text = escaped(cell.text)
    text = f"**{text}**" if cell.tone in ("good", "bad") else text
    return f"{text} ({escaped(cell.detail)})" if cell.detail else text


def escaped(text: str) -> str:
    """The same words where Markdown and HTML would read signs as instructions, on one line."""
    for sign in "\\`*_[]|~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").split())


def _fenced(text: str, language: str) -> str:
    """In a fence that is longer than any run of backticks within."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
