"""The final engines beside each other: which runtime is the fastest for the same student, and whether that is sure."""

from ...export.measurement import EngineMeasurement, Interval, Ranked
from ..report import Report
from . import wording
from .engine_tables import energy_cell, memory_cell, p50_cell
from .metric_words import MetricWords
from .tables import Cell, Table, Tone, figures, words


def ranking_sentence(report: Report) -> str:
    """Which engine leads, and whether its lead is beyond noise; empty where there is only one engine."""
    if len(report.ranking) < 2:
        return ""
    leader, *others = report.ranking
    level = [each for each in others if each.comparison.verdict != "slower"]
    timing = leader.comparison.candidate
    p50 = wording.figure(timing.p50_ms)
    sentence = (
        f"Fastest of the final student's {len(report.ranking)} engines: {leader.target}, "
        f"p50 {p50} ms at batch {timing.batch}"
    )
    if level:
        named = wording.sentence_list(each.target for each in level)
        return f"{sentence}; its lead over {named} is within noise."
    ratio = wording.ratio_in_words(1 / others[0].comparison.ratio)
    interval = wording.interval(_slower_by(others[0]), 2)
    return f"{sentence}, {ratio} ({interval}) faster than {others[0].target}, beyond noise."


def ranking_table(report: Report) -> Table | None:
    """The final engines, the fastest first, with what each costs; None where there is nothing to rank."""
    if len(report.ranking) < 2:
        return None
    engines = {engine.target: engine for engine in report.engines}
    told = MetricWords.of(engine.score for engine in report.engines)
    decimals = wording.decimals_for(each.comparison.candidate.p50_ms for each in report.ranking)
    columns = (
        words("Engine"),
        figures("p50", "ms"),
        figures("Time", "of the fastest's"),
        words("Verdict"),
        told.column(),
        figures("File", "kB"),
        figures("Peak memory", "MB"),
        figures("Energy", "mJ a sample"),
    )
    rows = tuple(
        _row(each, engines[each.target], told, decimals, index == 0) for index, each in enumerate(report.ranking)
    )
    first = report.ranking[0].comparison
    note = (
        f"Batch {first.batch}, all engines timed in turns. 95 % intervals: of the times by the sign test. “Within "
        "noise” is what may be chance beside the fastest."
    )
    return Table("Runtimes ranked", columns, rows, note).without_unmeasured()


def _row(
    ranked: Ranked, engine: EngineMeasurement, told: MetricWords, decimals: int, is_first: bool
) -> tuple[Cell, ...]:
    timing = ranked.comparison
    threads = f"{engine.threads} threads, " if engine.threads > 1 else ""
    return (
        Cell(ranked.target, f"{threads}n\u00a0=\u00a0{timing.candidate.samples:,}"),
        p50_cell(timing.candidate, decimals),
        Cell(wording.ratio(1.0)) if is_first else _time_cell(ranked),
        _verdict_cell(ranked, is_first),
        told.cell(engine.score),
        Cell(wording.kilobytes(engine.file_bytes)),
        memory_cell(engine),
        energy_cell(engine),
    )


def _time_cell(ranked: Ranked) -> Cell:
    """How many times as long as the fastest: of speeds, those of slow engines would all round to 0."""
    timing = ranked.comparison
    tone: Tone = "plain" if timing.verdict == "slower" else "quiet"
    return Cell(wording.ratio(1 / timing.ratio), wording.interval(_slower_by(ranked), 2), tone)


def _slower_by(ranked: Ranked) -> Interval:
    beside = ranked.comparison.interval
    return Interval(low=1 / beside.high, high=1 / beside.low)


def _verdict_cell(ranked: Ranked, is_first: bool) -> Cell:
    if is_first:
        return Cell("fastest", tone="good")
    slower = ranked.comparison.verdict == "slower"
    return Cell("slower") if slower else Cell("within noise", tone="quiet")
