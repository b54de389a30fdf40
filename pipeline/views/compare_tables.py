"""What a comparison says first: warnings, verdicts, and the engines that the runs and profiles stand for."""

from collections.abc import Callable, Iterator

from ...export.resampling import NOISE_FLOOR
from ..comparison.compare import AgainstFirst, Compared
from ..comparison.contender import Contender
from . import wording
from .compare_cells import marked, metric_column, named, score_cell, told_of
from .engine_tables import p50_cell, p99_cell, speedup_cell, threads_words, tone_of
from .metric_words import MetricWords, tone_of_change
from .tables import Cell, Column, Table, figures, not_measured, words

NO_TEACHER = "a profile has no teacher"


def verdict_sentences(compared: Compared) -> tuple[str, ...]:
    """One for each engine after the first."""
    first = compared.main[0]
    return tuple(_verdict_sentence(compared, first, each) for each in compared.against_first)


def _verdict_sentence(compared: Compared, first: Contender, against: AgainstFirst) -> str:
    parts = [_speed_words(against), _score_words(compared, first, against), _size_words(against)]
    return f"{against.engine.label} against {first.label}: {'; '.join(filter(None, parts))}."


def _speed_words(against: AgainstFirst) -> str:
    speedup = against.speedup
    if speedup is None:
        return f"latency not comparable ({against.speedup_reason})"
    if speedup.verdict == "faster":
        return f"{wording.ratio_in_words(speedup.ratio)} faster"
    if speedup.verdict == "slower":
        return f"{wording.ratio_in_words(1 / speedup.ratio)} slower"
    return "latency within noise"


def _score_words(compared: Compared, first: Contender, against: AgainstFirst) -> str:
    if first.score is None:
        return ""
    told = told_of(compared, first)
    name = told.metric.name
    if against.score is None:
        return f"{name} not comparable ({against.score_reason})"
    change = told.change_told(against.score.value)
    return f"{name} {change}" if against.score.significant else f"{name} within noise ({change})"


def _size_words(against: AgainstFirst) -> str:
    ratio = against.file_ratio
    if ratio is None:
        return ""
    if f"{ratio:.2f}" == "1.00":
        return "files of the same size"
    if ratio > 1:
        return f"file {wording.ratio_in_words(ratio)} smaller"
    return f"file {wording.ratio_in_words(1 / ratio)} larger"


def warnings_of(compared: Compared) -> tuple[str, ...]:
    """What a reader must know before reading any number."""
    return tuple(_warnings(compared))


def _warnings(compared: Compared) -> Iterator[str]:
    if not compared.same_machine:
        yield (
            f"These numbers were taken on {len(compared.machines)} different machines: latencies of different machines "
            "must not be set against each other. Every measured number here names its machine."
        )
    data = {run.report.data for run in compared.runs}
    if len(data) > 1:
        yield "These runs used different data: their metrics must not be set against each other."
    if not compared.same_metric:
        yield "These runs are judged by different metrics: how good they are cannot be compared."


def finals_table(compared: Compared) -> Table:
    """The engines that the runs and profiles stand for, beside each other."""
    decimals = wording.decimals_for(engine.latency[0].p50_ms for engine in compared.main)
    columns = (
        words("Run" if len(compared.runs) == len(compared.sources) else "Run or profile"),
        words("Engine"),
        metric_column(compared),
        figures("p50", "ms"),
        figures("p99", "ms"),
        figures("Speedup", "to its own teacher"),
        figures("File", "kB"),
        figures("Parameters"),
        figures("MACs", "million"),
        figures("Peak memory", "MB"),
    )
    rows = tuple(_final_row(compared, engine, decimals) for engine in compared.main)
    note = "Of a run, the final engine for the first target of its recipe. 95 % intervals."
    if not compared.runs:
        return Table("Profiled engines", columns, rows, "95 % intervals.").only(
            columns[0].title, "Engine", "p50", "p99", "File", "Peak memory"
        )
    return Table("Final engines", columns, rows, note)


def _final_row(compared: Compared, engine: Contender, decimals: int) -> tuple[Cell, ...]:
    latency = engine.latency[0]
    taken = f"batch {latency.batch}, {threads_words(engine.threads)}, n\u00a0=\u00a0{latency.samples:,}"
    memory = engine.peak_memory_bytes
    row = (
        named(Cell(engine.label), compared, engine.machine),
        Cell(engine.target, taken),
        score_cell(compared, engine),
        p50_cell(latency, decimals),
        p99_cell(latency, decimals),
        speedup_cell(engine.speedup) if engine.speedup else not_measured(NO_TEACHER),
        _known(engine.file_bytes, wording.kilobytes),
        _known(engine.parameters, lambda value: f"{value:,}"),
        _known(engine.macs, wording.megabytes),
        not_measured("the system does not tell") if memory is None else Cell(wording.megabytes(memory)),
    )
    measured = (2, 3, 4, 5, 9)
    return tuple(marked(cell, compared, engine.machine) if at in measured else cell for at, cell in enumerate(row))


def _known(value: int | None, told: Callable[[int], str]) -> Cell:
    return Cell("–", tone="quiet") if value is None else Cell(told(value))


def differences_table(compared: Compared) -> Table:
    """Each other engine against the first one, with the verdicts; no row where there is only one."""
    first = compared.main[0]
    columns = (
        words("Run" if len(compared.runs) == len(compared.sources) else "Run or profile"),
        *_score_columns(compared, first),
        figures("Speed", f"p50 of {first.mark} over p50"),
        words("Verdict on latency"),
        figures("File", "smaller"),
    )
    rows = tuple(_difference_row(compared, first, each) for each in compared.against_first)
    return Table(f"Against {first.label}", columns, rows, _differences_note(compared, first))


def _score_columns(compared: Compared, first: Contender) -> tuple[Column, ...]:
    if first.score is None:
        return ()
    told = told_of(compared, first)
    return (told.change_column(), words(f"Verdict on {told.metric.name}"))


def _differences_note(compared: Compared, first: Contender) -> str:
    of_score = ""
    if first.score is not None:
        told = told_of(compared, first)
        of_score = f"{told.title}: {_interval_words(told)}, which takes the test samples for independent. "
    moved = (
        "the same teacher file, timed anew beside every step, moved by up to "
        f"{100 * compared.drift:.1f} % within a run, and under {100 * NOISE_FLOOR:.0f} % nothing counts"
        if compared.runs
        else "the smallest that counts between two processes; profiles do not tell how far the machine drifted"
    )
    return (
        f"Engines against {first.label}, 95 % intervals. {of_score}Latency: intervals of both medians, combined on "
        f"logarithms (Zou and Donner 2008). Beyond {100 * compared.noise_floor:.1f} % a difference between sessions "
        f"counts: {moved}."
    )


def _interval_words(told: MetricWords) -> str:
    if told.is_share:
        return "Newcombe's interval of a difference (1998)"
    return "both runs' intervals put together by the square-and-add rule (Zou and Donner 2008)"


def _difference_row(compared: Compared, first: Contender, against: AgainstFirst) -> tuple[Cell, ...]:
    other = against.engine.machine
    row = (
        *(_score_cells(compared, first, against) if first.score else ()),
        *_speed_cells(against),
    )
    return (
        named(Cell(against.engine.label), compared, first.machine, other),
        *(marked(cell, compared, first.machine, other) for cell in row),
        Cell(wording.ratio(against.file_ratio)),
    )


def _score_cells(compared: Compared, first: Contender, against: AgainstFirst) -> tuple[Cell, Cell]:
    change, told = against.score, told_of(compared, first)
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


def judgements_table(compared: Compared) -> Table:
    """What was demanded by ``--fail-if``, and whether it is so."""
    by_mark = {engine.mark: engine for engine in compared.main}
    rows = tuple(
        (
            Cell(each.condition),
            Cell("✗ failed", tone="bad") if each.failed else Cell("✓ passed", tone="good"),
            named(Cell(each.sentence.partition(": ")[2]), compared, by_mark[each.engine].machine),
        )
        for each in compared.judgements
    )
    return Table("Fail if", (words("Condition"), words("Verdict"), words("In words")), rows)
