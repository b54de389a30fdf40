"""What a comparison of runs says, as tables and sentences."""

from collections.abc import Iterator

from ...export.measurement import EngineMeasurement, Score
from ...export.resampling import NOISE_FLOOR
from . import wording
from .compare import AgainstFirst, Run, RunComparison, hardware
from .engine_tables import (
    memory_cell,
    p50_cell,
    p99_cell,
    speedup_cell,
    threads_words,
    tone_of,
)
from .metric_words import MetricWords, tone_of_change
from .tables import Cell, Column, Table, cells, figures, words


def verdict_sentences(comparison: RunComparison) -> tuple[str, ...]:
    """One for each run after the first."""
    told = metric_words(comparison, comparison.runs[0])
    return tuple(_verdict_sentence(comparison.runs[0], each, told) for each in comparison.against_first())


def metric_words(comparison: RunComparison, run: Run) -> MetricWords:
    """How a run's metric is told, alike for all runs that have it."""
    metric = run.report.metric
    alike = [each.report for each in comparison.runs if each.report.metric == metric]
    return MetricWords.of(step.engine.score for report in alike for step in report.steps)


def _score_column(comparison: RunComparison) -> Column:
    if comparison.same_metric:
        return metric_words(comparison, comparison.runs[0]).column()
    return figures("Metric")


def _score_cell(comparison: RunComparison, run: Run, score: Score) -> Cell:
    """With the metric's name where the runs have different ones."""
    told = metric_words(comparison, run)
    cell = told.cell(score)
    if comparison.same_metric:
        return cell
    return Cell(f"{told.metric.name} {told.told(score.value)}", cell.detail)


def _verdict_sentence(first: Run, against: AgainstFirst, told: MetricWords) -> str:
    parts = [_speed_words(against), _score_words(against, told), _size_words(against)]
    return f"{against.run.label} against {first.label}: {'; '.join(parts)}."


def _speed_words(against: AgainstFirst) -> str:
    speedup = against.speedup
    if speedup is None:
        return f"latency not comparable ({against.speedup_reason})"
    if speedup.verdict == "faster":
        return f"{wording.ratio_in_words(speedup.ratio)} faster"
    if speedup.verdict == "slower":
        return f"{wording.ratio_in_words(1 / speedup.ratio)} slower"
    return "latency within noise"


def _score_words(against: AgainstFirst, told: MetricWords) -> str:
    name = told.metric.name
    if against.score is None:
        return f"{name} not comparable ({against.score_reason})"
    change = told.change_told(against.score.value)
    return f"{name} {change}" if against.score.significant else f"{name} within noise ({change})"


def _size_words(against: AgainstFirst) -> str:
    ratio = against.file_ratio
    if ratio is None or f"{ratio:.2f}" == "1.00":
        return "files of the same size"
    if ratio > 1:
        return f"file {wording.ratio_in_words(ratio)} smaller"
    return f"file {wording.ratio_in_words(1 / ratio)} larger"


def warnings_of(comparison: RunComparison) -> tuple[str, ...]:
    """What a reader must know before reading any number."""
    return tuple(_warnings(comparison))


def _warnings(comparison: RunComparison) -> Iterator[str]:
    if not comparison.same_machine:
        yield (
            "These runs were measured on different machines: latencies of different machines must not be set against "
            "each other. Every latency here names its machine."
        )
    data = {run.report.data for run in comparison.runs}
    if len(data) > 1:
        yield "These runs used different data: their metrics must not be set against each other."
    if not comparison.same_metric:
        yield "These runs are judged by different metrics: how good they are cannot be compared."


def finals_table(comparison: RunComparison) -> Table:
    """The final engines beside each other."""
    timings = [run.report.steps[-1].timing.candidate for run in comparison.runs]
    decimals = wording.decimals_for(timing.p50_ms for timing in timings)
    columns = (
        words("Run"),
        words("Final engine"),
        _score_column(comparison),
        figures("p50", "ms"),
        figures("p99", "ms"),
        figures("Speedup", "to its own teacher"),
        figures("File", "kB"),
        figures("Parameters"),
        figures("MACs", "million"),
        figures("Peak memory", "MB"),
    )
    rows = tuple(_final_row(comparison, run, decimals) for run in comparison.runs)
    return Table("Final engines", columns, rows, "First target of each recipe. 95 % intervals.")


def _final_row(comparison: RunComparison, run: Run, decimals: int) -> tuple[Cell, ...]:
    step = run.report.steps[-1]
    latency = step.timing.candidate
    return (
        Cell(run.label, f"{len(run.report.steps)} steps"),
        Cell(
            run.final.target,
            f"batch {latency.batch}, {threads_words(run.final.threads)}, n\u00a0=\u00a0{latency.samples:,}",
        ),
        _score_cell(comparison, run, run.final.score),
        _on_machine(p50_cell(latency, decimals), comparison, run),
        _on_machine(p99_cell(latency, decimals), comparison, run),
        _on_machine(speedup_cell(step.timing), comparison, run),
        Cell(wording.kilobytes(run.final.file_bytes)),
        Cell(f"{step.parameters:,}"),
        Cell(wording.megabytes(step.macs)),
        _on_machine(memory_cell(run.final), comparison, run),
    )


def machine_mark(comparison: RunComparison, run: Run) -> str:
    """Such as ``machine 2``; empty where all runs are of one machine."""
    if comparison.same_machine:
        return ""
    seen = list(dict.fromkeys(hardware(each.report.machine) for each in comparison.runs))
    return f"machine {seen.index(hardware(run.report.machine)) + 1}"


def _on_machine(cell: Cell, comparison: RunComparison, run: Run) -> Cell:
    mark = machine_mark(comparison, run)
    if not mark:
        return cell
    return Cell(cell.text, f"{cell.detail}; {mark}" if cell.detail else mark, cell.tone)


def differences_table(comparison: RunComparison) -> Table:
    """Each run's final engine against the first one's, with the verdicts."""
    first = comparison.runs[0]
    told = metric_words(comparison, first)
    columns = (
        words("Run"),
        told.change_column(),
        words(f"Verdict on {told.metric.name}"),
        figures("Speed", f"p50 of {first.letter} over p50"),
        words("Verdict on latency"),
        figures("File", "smaller"),
    )
    note = (
        f"Final engines against {first.label}, 95 % intervals. {told.title}: {_interval_words(told)}, "
        "which takes the test samples for independent. Latency: intervals of both medians, combined on logarithms (Zou "
        "and Donner 2008). The runs were measured in different sessions, so a difference counts only beyond "
        f"{100 * comparison.noise_floor:.1f} %: the same teacher file, timed anew beside every step, moved by up to "
        f"{100 * comparison.drift:.1f} % within a run, and under {100 * NOISE_FLOOR:.0f} % nothing counts."
    )
    rows = tuple(_difference_row(each, told) for each in comparison.against_first())
    return Table(f"Against {first.label}", columns, rows, note)


def _interval_words(told: MetricWords) -> str:
    if told.is_share:
        return "Newcombe's interval of a difference (1998)"
    return "both runs' intervals put together by the square-and-add rule (Zou and Donner 2008)"


def _difference_row(against: AgainstFirst, told: MetricWords) -> tuple[Cell, ...]:
    return (
        Cell(against.run.label),
        *_score_cells(against, told),
        *_speed_cells(against),
        Cell(wording.ratio(against.file_ratio)),
    )


def _score_cells(against: AgainstFirst, told: MetricWords) -> tuple[Cell, Cell]:
    change = against.score
    if change is None:
        return Cell("not comparable", tone="quiet"), Cell(against.score_reason, tone="quiet")
    text, detail = told.change(change.value), told.change_interval(change.interval)
    if not change.significant:
        return Cell(text, detail), Cell("within noise", tone="quiet")
    tone = tone_of_change(change)
    return Cell(text, detail, tone), Cell("higher" if change.value > 0 else "lower", tone=tone)


def _speed_cells(against: AgainstFirst) -> tuple[Cell, Cell]:
    speedup = against.speedup
    if speedup is None:
        return Cell("not comparable", tone="quiet"), Cell(against.speedup_reason, tone="quiet")
    tone = tone_of(speedup.verdict)
    verdict = "within noise" if tone == "quiet" else speedup.verdict
    return Cell(wording.ratio(speedup.ratio), wording.interval(speedup.interval, 2), tone), Cell(verdict, tone=tone)


def goals_table(comparison: RunComparison) -> Table:
    """Each run's goals."""
    rows = tuple(
        (
            Cell(run.label),
            Cell(goal.goal),
            Cell("✓ met", tone="good") if goal.met else Cell("✗ missed", tone="bad"),
            Cell(goal.sentence.partition(": ")[2] or goal.sentence),
        )
        for run in comparison.runs
        for goal in run.report.goals
    )
    return Table("Goals", (words("Run"), words("Goal"), words("Verdict"), words("In words")), rows)


def steps_table(comparison: RunComparison) -> Table:
    """What each step of each run earned."""
    first = metric_words(comparison, comparison.runs[0])
    change = first.change_column(f"{first.title} change", "by the step")
    columns = (
        words("Step"),
        _score_column(comparison),
        change if comparison.same_metric else figures("Change", "by the step"),
        figures("Speed", "by the step"),
        figures("Speedup", "to its own teacher"),
        figures("File", "kB"),
        figures("MACs", "million"),
    )
    rows: list[tuple[Cell, ...]] = []
    for run in comparison.runs:
        told = metric_words(comparison, run)
        for row in run.report.earned:
            speedup, score = row.speedup, row.score
            rows.append(
                (
                    Cell(f"{run.letter} {row.step.name}"),
                    _score_cell(comparison, run, row.step.engine.score),
                    Cell(told.change(score.value), told.change_interval(score.interval))
                    if score
                    else Cell("–", tone="quiet"),
                    _on_machine(
                        Cell(
                            wording.ratio(speedup.ratio),
                            wording.interval(speedup.interval, 2),
                            tone_of(speedup.verdict),
                        ),
                        comparison,
                        run,
                    )
                    if speedup
                    else Cell("–", tone="quiet"),
                    _on_machine(speedup_cell(row.step.timing), comparison, run),
                    Cell(wording.kilobytes(row.step.engine.file_bytes)),
                    Cell(wording.megabytes(row.step.macs)),
                )
            )
    return Table("What each step earned", columns, tuple(rows))


def engines_table(comparison: RunComparison) -> Table:
    """Every final engine of every run at every batch size."""
    engines = [(run, engine) for run in comparison.runs for engine in run.report.engines]
    decimals = wording.decimals_for(each.candidate.p50_ms for _, engine in engines for each in engine.latency)
    columns = (
        words("Run"),
        words("Engine"),
        figures("Batch"),
        figures("Threads"),
        figures("n"),
        figures("p50", "ms"),
        figures("p99", "ms"),
        figures("Throughput", "samples/s"),
        _score_column(comparison),
    )
    rows = tuple(row for run, engine in engines for row in _engine_rows(comparison, run, engine, decimals))
    return Table("All final engines", columns, rows)


def _engine_rows(
    comparison: RunComparison, run: Run, engine: EngineMeasurement, decimals: int
) -> Iterator[tuple[Cell, ...]]:
    for timing in engine.latency:
        latency = timing.candidate
        yield (
            Cell(run.label),
            Cell(engine.target),
            *cells((str(latency.batch), str(engine.threads), f"{latency.samples:,}")),
            _on_machine(p50_cell(latency, decimals), comparison, run),
            _on_machine(p99_cell(latency, decimals), comparison, run),
            _on_machine(Cell(wording.plain(latency.throughput, 0)), comparison, run),
            _score_cell(comparison, run, engine.score),
        )


def settings_table(comparison: RunComparison) -> Table:
    """Where the recipes differ."""
    return _values_table("Different settings", "Setting", comparison, comparison.different_settings())


def machines_table(comparison: RunComparison) -> Table:
    """Where the machines differ."""
    return _values_table("Different machines", "Fact", comparison, comparison.machine_differences())


def _values_table(
    title: str, what: str, comparison: RunComparison, rows: tuple[tuple[str, tuple[str, ...]], ...]
) -> Table:
    columns = (words(what), *(words(run.label) for run in comparison.runs))
    return Table(title, columns, tuple(cells((name, *values)) for name, values in rows))


def runs_table(comparison: RunComparison) -> Table:
    """Which runs these are."""
    columns = (words("Run"), words("Folder"), words("Started"), words("Machine"), words("Data"), words("Recipe hash"))
    rows = tuple(
        (
            Cell(run.label, machine_mark(comparison, run)),
            Cell(str(run.path)),
            Cell(f"{run.report.started:%Y-%m-%d %H:%M %Z}".strip()),
            Cell(run.report.machine.cpu_model),
            Cell(run.report.data),
            Cell(run.report.recipe_hash[:16]),
        )
        for run in comparison.runs
    )
    return Table("Runs", columns, rows)


def tables_of(comparison: RunComparison) -> Iterator[Table]:
    """The tables that every view shows; those that would be empty are left out."""
    yield finals_table(comparison)
    yield differences_table(comparison)
    for table in (goals_table(comparison), steps_table(comparison), engines_table(comparison)):
        if table.rows:
            yield table
    for table in (settings_table(comparison), machines_table(comparison)):
        if table.rows:
            yield table
    yield runs_table(comparison)
