"""A comparison of runs in the terminal, as Markdown and as a page."""

from typing import IO

from . import compare_tables, wording
from .compare import Run, RunComparison
from .html import NARROW, WIDE, Chart, render, scatter_chart
from .markdown import escaped, table_markdown
from .scatter import EnginePoint
from .terminal import console_on, table_view
from .waterfall import waterfall


def print_comparison(comparison: RunComparison, stream: IO[str] | None = None) -> None:
    """Warnings, verdicts and the tables that fit, on standard output unless another stream is given."""
    from rich.text import Text

    console = console_on(stream)
    for warning in compare_tables.warnings_of(comparison):
        console.print(Text(warning, style="bold red"))
    for sentence in compare_tables.verdict_sentences(comparison):
        console.print(Text(sentence, style="bold"))
    finals = compare_tables.finals_table(comparison)
    console.print(table_view(finals.only("Run", "Final engine", finals.columns[2].title, "p50", "Speedup", "File")))
    console.print(table_view(compare_tables.differences_table(comparison)))
    settings = compare_tables.settings_table(comparison)
    if settings.rows:
        console.print(table_view(settings))


def comparison_markdown(comparison: RunComparison) -> str:
    """Everything but the charts."""
    parts = [f"# {escaped(_title(comparison))}"]
    parts += [f"**{escaped(warning)}**" for warning in compare_tables.warnings_of(comparison)]
    parts.append("\n".join(f"- {escaped(sentence)}" for sentence in compare_tables.verdict_sentences(comparison)))
    parts += [table_markdown(table) for table in compare_tables.tables_of(comparison)]
    return "\n\n".join(parts) + "\n"


def comparison_html(comparison: RunComparison) -> str:
    """One page that needs nothing but itself."""
    return render(
        "compare.html.jinja",
        title=_title(comparison),
        comparison=comparison,
        warnings=compare_tables.warnings_of(comparison),
        sentences=compare_tables.verdict_sentences(comparison),
        finals=compare_tables.finals_table(comparison),
        differences=compare_tables.differences_table(comparison),
        goals=compare_tables.goals_table(comparison),
        metric=compare_tables.metric_words(comparison, comparison.runs[0]),
        scatter=scatter_chart(_points(comparison), "compare") if comparison.same_metric else None,
        waterfalls=[(run.label, _waterfall(run, comparison)) for run in comparison.runs if run.report.steps[1:]],
        steps=compare_tables.steps_table(comparison),
        engines=compare_tables.engines_table(comparison),
        settings=compare_tables.settings_table(comparison),
        machines=compare_tables.machines_table(comparison),
        runs=compare_tables.runs_table(comparison),
        marks={run.letter: compare_tables.machine_mark(comparison, run) for run in comparison.runs},
    )


def _title(comparison: RunComparison) -> str:
    return wording.sentence_list(run.label for run in comparison.runs)


def _points(comparison: RunComparison) -> list[EnginePoint]:
    return [
        _point(run, index, series)
        for series, run in enumerate(comparison.runs)
        for index in range(len(run.report.steps))
    ]


def _point(run: Run, index: int, series: int) -> EnginePoint:
    step = run.report.steps[index]
    number = step.name.partition("-")[0].lstrip("0") or str(index + 1)
    mark = f"{run.letter}{number}"
    return EnginePoint(mark, mark, step.engine.score, step.timing.candidate, series)


def _waterfall(run: Run, comparison: RunComparison) -> Chart:
    reports = [each.report for each in comparison.runs]
    wide, narrow = (
        waterfall(run.report, width, f"waterfall-{run.letter}-{width:.0f}", reports) for width in (WIDE, NARROW)
    )
    return Chart(wide.markup(), narrow.markup())
