"""What a comparison of runs says, as tables and sentences."""

from collections.abc import Iterator

from ...export.measurement import EngineMeasurement
from ...export.resampling import NOISE_FLOOR
from . import wording
from .compare import AgainstFirst, Run, RunComparison, hardware
from .engine_tables import (
    accuracy_cell,
    memory_cell,
    p50_cell,
    p99_cell,
    speedup_cell,
    threads_words,
    tone_of,
)
from .tables import Cell, Table, Tone, cells, figures, words


def verdict_sentences(comparison: RunComparison) -> tuple[str, ...]:
    """One for each run after the first."""
    return tuple(_verdict_sentence(comparison.runs[0], each) for each in comparison.against_first())


def _verdict_sentence(first: Run, against: AgainstFirst) -> str:
    parts = [_speed_words(against), _accuracy_words(against), _size_words(against)]
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


def _accuracy_words(against: AgainstFirst) -> str:
    if against.accuracy is None:
        return f"accuracy not comparable ({against.accuracy_reason})"
    if not against.accuracy.significant:
        return f"accuracy within noise ({wording.points(against.accuracy.value)} points)"
    return f"accuracy {wording.points(against.accuracy.value)} points"


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
        yield "These runs used different data: their accuracies must not be set against each other."


def finals_table(comparison: RunComparison) -> Table:
    """The final engines beside each other."""
    timings = [run.report.steps[-1].timing.candidate for run in comparison.runs]
    decimals = wording.decimals_for(timing.p50_ms for timing in timings)
    columns = (
        words("Run"),
        words("Final engine"),
        figures("Accuracy", "%"),
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
        accuracy_cell(run.final.accuracy),
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
    columns = (
        words("Run"),
        figures("Accuracy", "points"),
        words("Verdict on accuracy"),
        figures("Speed", f"p50 of {first.letter} over p50"),
        words("Verdict on latency"),
        figures("File", "smaller"),
    )
    note = (
        f"Final engines against {first.label}, 95 % intervals. Accuracy: Newcombe's interval of a difference (1998), "
        "which takes the test samples for independent. Latency: intervals of both medians, combined on logarithms (Zou "
        "and Donner 2008). The runs were measured in different sessions, so a difference counts only beyond "
        f"{100 * comparison.noise_floor:.1f} %: the same teacher file, timed anew beside every step, moved by up to "
        f"{100 * comparison.drift:.1f} % within a run, and under {100 * NOISE_FLOOR:.0f} % nothing counts."
    )
    rows = tuple(_difference_row(each) for each in comparison.against_first())
    return Table(f"Against {first.label}", columns, rows, note)


def _difference_row(against: AgainstFirst) -> tuple[Cell, ...]:
    return (
        Cell(against.run.label),
        *_accuracy_cells(against),
        *_speed_cells(against),
        Cell(wording.ratio(against.file_ratio)),
    )


def _accuracy_cells(against: AgainstFirst) -> tuple[Cell, Cell]:
    change = against.accuracy
    if change is None:
        return Cell("not comparable", tone="quiet"), Cell(against.accuracy_reason, tone="quiet")
    detail = wording.points_interval(change.interval)
    if not change.significant:
        return Cell(wording.points(change.value), detail), Cell("within noise", tone="quiet")
    tone: Tone = "good" if change.value > 0 else "bad"
    return Cell(wording.points(change.value), detail, tone), Cell("higher" if change.value > 0 else "lower", tone=tone)


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
    columns = (
        words("Step"),
        figures("Accuracy", "%"),
        figures("Accuracy change", "points, by the step"),
        figures("Speed", "by the step"),
        figures("Speedup", "to its own teacher"),
        figures("File", "kB"),
        figures("MACs", "million"),
    )
    rows: list[tuple[Cell, ...]] = []
    for run in comparison.runs:
        for row in run.report.earned:
            speedup, accuracy = row.speedup, row.accuracy
            rows.append(
                (
                    Cell(f"{run.letter} {row.step.name}"),
                    accuracy_cell(row.step.engine.accuracy),
                    Cell(wording.points(accuracy.value), wording.points_interval(accuracy.interval))
                    if accuracy
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
        figures("Accuracy", "%"),
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
            accuracy_cell(engine.accuracy),
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
