"""The report in a terminal: the headline and the tables that fit there."""

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING

from ...export.measurement import EngineMeasurement
from ..report import Report
from . import device_tables, engine_tables, ranking, report_tables
from .metric_words import MetricWords
from .scenario_tables import scenario_tables
from .tables import Cell, Column, Table, Tone
from .terms import terms_of, terms_sentence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

STYLES: dict[Tone, str] = {"plain": "", "good": "bold", "bad": "bold red", "quiet": "dim"}

LOG_WIDTH = 120
"""In columns, where the output goes to a file or a pipe."""


def print_report(report: Report, stream: IO[str] | None = None) -> None:
    """Headline, steps, goals and engines, on standard output unless another stream is given."""
    console = console_on(stream)
    for part in _parts(report):
        console.print(part)


def print_engines(title: str, engines: Sequence[EngineMeasurement], stream: IO[str] | None = None) -> None:
    """Their numbers, and what their precision alone would not tell."""
    told = MetricWords.of(engine.score for engine in engines)
    console = console_on(stream)
    table = engine_tables.latency_table(title, [(each.target, each) for each in engines])
    console.print(table_view(table.only("Engine", "Batch", "p50", "p99", "Throughput", "Speedup")))
    for engine in engines:
        console.print(f"{engine.target}: {told.metric.name} {told.told(engine.score.value)}; {engine.file}")
        for remark in engine.remarks:
            console.print(f"  {remark}")


def console_on(stream: IO[str] | None) -> "Console":
    """As wide as the terminal; wide enough for every table where there is none."""
    from rich.console import Console

    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, emoji=False, markup=False, width=LOG_WIDTH)
    return console


def _parts(report: Report) -> "Iterator[RenderableType]":
    from rich.text import Text

    yield Text(f"\n{report.name}: {report_tables.headline_sentence(report)}\n", style="bold")
    if fastest := ranking.ranking_sentence(report):
        yield Text(f"{fastest}\n", style="bold")
    for sentence in report_tables.warning_sentences(report):
        yield Text(f"! {sentence}\n", style="bold red")
    steps = report_tables.steps_table(report)
    metric = report_tables.metric_words(report).title
    yield table_view(steps.only("Step", "Precision", metric, "p50", "Speedup", "File", "Parameters", "MACs"))
    if len(report.steps) > 1:
        earned = report_tables.earned_table(report)
        yield table_view(earned.only("Step", metric, f"{metric} in total", "Speedup", "Speedup in total"))
    ranked = ranking.ranking_table(report)
    if ranked is not None:
        metric = ranked.columns[4].title
        yield table_view(ranked.only("Engine", "p50", "Time", "Verdict", metric, "File", "Peak memory"))
    if len(report.engines) > 1 or any(len(engine.latency) > 1 for engine in report.engines):
        latency = engine_tables.latency_table("Final engines", [(each.target, each) for each in report.engines])
        yield table_view(latency.only("Engine", "Batch", "p50", "p99", "Throughput", "Speedup"))
    for table in scenario_tables(report):
        yield table_view(table.only("Engine", "Batch", "Throughput", "Where", "Bound", "Rate", "p50", "p99", "Queries"))
    on_device = device_tables.device_latency_table(report)
    if on_device is not None:
        yield table_view(on_device.only("Engine", "Batch", "Host p50", "Device p50", "Device p99", "Beside the device"))
    for step in report.steps:
        if terms := terms_of(step):
            yield Text(terms_sentence(step.name, terms))
    engine = engine_tables.audited(report)
    if engine is not None and engine.audit is not None:
        yield Text(f"{engine.target}: {engine_tables.audit_sentence(engine.audit)}")
        for layer in engine_tables.otherwise(engine.audit):
            style = "dim" if layer.on_purpose else "red"
            words = f"  {layer.precision}: {layer.name} ({layer.kind}, {layer.macs:,} MACs): {layer.reason}"
            yield Text(words, style=style)
    if report.goals and (judged := report_tables.judged_sentence(report)):
        yield Text(judged, style="dim")
    for goal in report.goals:
        yield Text(f"{'✓' if goal.met else '✗'} {goal.sentence}", style="" if goal.met else "bold red")


def table_view(table: Table) -> "RichTable":
    """A table with rules only under its head; details stand under what they belong to."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    view = RichTable(
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=Text(table.note, style="dim") if table.note else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in table.columns:
        view.add_column(_head(column), justify="right" if column.numeric else "left", vertical="top")
    for row in table.rows:
        view.add_row(*(_cell(cell) for cell in row))
    return view


def _head(column: Column) -> "Text":
    from rich.text import Text

    return Text(f"{column.title}\n{column.unit}" if column.unit else column.title)


def _cell(cell: Cell) -> "Text":
    from rich.text import Text

    text = Text(cell.text, style=STYLES[cell.tone])
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    return text
