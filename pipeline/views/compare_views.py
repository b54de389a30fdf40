"""A comparison of runs and profiles in the terminal, as Markdown, as a page, and as a value for programs."""

from collections.abc import Iterator
from typing import IO

from ..comparison.compare import Compared
from ..comparison.contender import Run
from ..comparison.record import FILE, ComparisonRecord
from . import compare_details, compare_tables, layer_tables, pareto_table, wording
from .compare_cells import machine_mark, told_of
from .html import Chart, in_both_forms, render, scatter_chart
from .markdown import escaped, table_markdown
from .scatter import EnginePoint
from .tables import Table
from .terminal import console_on, table_view
from .waterfall import waterfall


def comparison_files(compared: Compared) -> dict[str, str]:
    """Their texts by their names."""
    return {
        FILE: ComparisonRecord.of(compared).model_dump_json(indent=1) + "\n",
        "compare.md": comparison_markdown(compared),
        "compare.html": comparison_html(compared),
    }


def print_comparison(compared: Compared, stream: IO[str] | None = None) -> None:
    """Warnings, verdicts and the tables that fit, on standard output unless another stream is given."""
    from rich.text import Text

    console = console_on(stream)
    for warning in compare_tables.warnings_of(compared):
        console.print(Text(warning, style="bold red"))
    for sentence in compare_tables.verdict_sentences(compared):
        console.print(Text(sentence, style="bold"))
    finals = compare_tables.finals_table(compared)
    titles = [column.title for column in finals.columns]
    console.print(table_view(finals.only(*titles[:4], "Speedup", "File")))
    for table in (compare_tables.differences_table(compared), compare_details.settings_table(compared)):
        if table.rows:
            console.print(table_view(table))
    for sentence in filter(None, (pareto_table.front_sentence(compared), *layer_tables.layer_sentences(compared))):
        console.print(Text(sentence))
    for each in compared.judgements:
        console.print(Text(f"{'✗' if each.failed else '✓'} {each.sentence}", style="bold red" if each.failed else ""))


def comparison_markdown(compared: Compared) -> str:
    """Everything but the charts."""
    parts = [f"# {escaped(_title(compared))}"]
    parts += [f"**{escaped(sentence)}**" for sentence in _alarms(compared)]
    if compared.against_first:
        parts.append("\n".join(f"- {escaped(each)}" for each in compare_tables.verdict_sentences(compared)))
    if front := pareto_table.front_sentence(compared):
        parts.append(escaped(front))
    parts += [table_markdown(table) for table in _tables(compared)]
    if compared.layers:
        parts.append("## Layers")
        parts.append("\n".join(f"- {escaped(each)}" for each in layer_tables.layer_sentences(compared)))
        parts += [table_markdown(table, level=3) for table in layer_tables.layer_tables(compared)]
    return "\n\n".join(parts) + "\n"


def _tables(compared: Compared) -> Iterator[Table]:
    """Those that every reader of a file sees; the ones that would be empty are left out."""
    for table in (
        compare_tables.judgements_table(compared),
        compare_tables.finals_table(compared),
        compare_tables.differences_table(compared),
        compare_details.goals_table(compared),
        pareto_table.pareto_table(compared),
        compare_details.steps_table(compared),
        compare_details.engines_table(compared),
        compare_details.settings_table(compared),
        compare_details.machines_table(compared),
        compare_details.sources_table(compared),
    ):
        if table.rows:
            yield table


def comparison_html(compared: Compared) -> str:
    """One page that needs nothing but itself."""
    points = _points(compared)
    return render(
        "compare.html.jinja",
        title=_title(compared),
        compared=compared,
        alarms=_alarms(compared),
        sentences=compare_tables.verdict_sentences(compared),
        front=pareto_table.front_sentence(compared),
        judgements=compare_tables.judgements_table(compared),
        finals=compare_tables.finals_table(compared),
        differences=compare_tables.differences_table(compared),
        goals=compare_details.goals_table(compared),
        metric=told_of(compared, compared.runs[0].main[0]) if compared.runs else None,
        scatter=scatter_chart(points, "compare", compared.budgets) if points else None,
        pareto=pareto_table.pareto_table(compared),
        waterfalls=[(run, _waterfall(run, compared)) for run in compared.runs if run.report.steps[1:]],
        steps=compare_details.steps_table(compared),
        layers=layer_tables.layer_sentences(compared),
        layer_tables=list(layer_tables.layer_tables(compared)),
        engines=compare_details.engines_table(compared),
        settings=compare_details.settings_table(compared),
        machines=compare_details.machines_table(compared),
        sources=compare_details.sources_table(compared),
        marks={source.letter: machine_mark(compared, source.machine) for source in compared.sources},
    )


def _title(compared: Compared) -> str:
    return wording.sentence_list(source.label for source in compared.sources)


def _alarms(compared: Compared) -> tuple[str, ...]:
    """What a reader must know first: which numbers may not be compared, and what failed."""
    failed = (f"✗ {each.sentence}" for each in compared.judgements if each.failed)
    return (*compare_tables.warnings_of(compared), *failed)


def _points(compared: Compared) -> list[EnginePoint]:
    """Every engine that has a place; the line of a run leads through its steps."""
    places = {each.engine.mark: each for each in compared.standings}
    return [
        EnginePoint(
            engine.mark,
            engine.mark,
            places[engine.mark].score,
            places[engine.mark].latency,
            series,
            joined=index < len(run.report.steps),
            ground=places[engine.mark].ground,
        )
        for series, run in enumerate(compared.runs)
        for index, engine in enumerate(run.engines)
        if engine.mark in places
    ]


def _waterfall(run: Run, compared: Compared) -> Chart:
    reports = [each.report for each in compared.runs]
    return in_both_forms(lambda width, key: waterfall(run.report, width, f"waterfall-{run.letter}-{key}", reports))
