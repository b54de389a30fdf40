"""What a report says, as tables and sentences."""

from collections.abc import Iterator

from ...export.measurement import P90_SAMPLES, P99_SAMPLES, Comparison, Machine
from ..progress import duration_text
from ..report import Earned, Report, StepReport
from . import wording
from .device_tables import device_latency_table, device_state_table, throttling_sentences
from .engine_tables import (
    NO_CHANGE,
    engines_table,
    latency_table,
    memory_cell,
    p50_cell,
    p99_cell,
    parity_table,
    ratio_detail,
    remarks_table,
    samples_words,
    speedup_cell,
    threads_words,
    tone_of,
)
from .metric_words import MetricWords
from .ranking import ranking_table
from .scenario_tables import scenario_tables
from .tables import Cell, Table, cells, figures, not_measured, words
from .terms import terms_of

BUSY = 1.5
"""Processes a thread, on average, from which on others took part: the run itself keeps each thread busy at most."""

AA_VERDICTS = {NO_CHANGE: ", noise", "faster": ", FAILED", "slower": ", FAILED"}
"""An engine that comes out faster or slower than itself says that the machine was not quiet."""


def metric_words(report: Report) -> MetricWords:
    """How the run's metric is told: alike wherever its steps stand beside each other."""
    return MetricWords.of(step.engine.score for step in report.steps)


def headline_sentence(report: Report) -> str:
    """The run in one sentence: speed, metric, size."""
    told = metric_words(report)
    if len(report.steps) == 1:
        engine = report.steps[0].engine
        reaches = told.told(engine.score.value)
        if not told.is_share:
            reaches = f"a {told.metric.name} of {reaches}"
        return (
            f"Only the teacher was made so far: {engine.target} reaches {reaches} "
            f"at a p50 of {wording.plain(report.steps[0].timing.candidate.p50_ms, 3)} ms."
        )
    headline = report.headline
    return (
        f"{_speed_words(headline.timing)} than the teacher's fp32 engine at batch {headline.timing.batch}, "
        f"{told.change_in_words(headline.score)}, file {_size_words(headline.file_ratio)}."
    )


def gate_sentences(report: Report) -> tuple[str, ...]:
    """One for each compression whose engine is not faster, or smaller, than that of the step before, with reasons."""
    return tuple(
        _gate_sentence(before, step)
        for before, step in zip(report.steps, report.steps[1:], strict=False)
        if _missed_its_aim(before, step)
    )


def _missed_its_aim(before: StepReport, step: StepReport) -> bool:
    if step.gate is None or not step.gate.compresses:
        return False
    if step.gate.aim == "size":
        return step.engine.file_bytes >= before.engine.file_bytes
    return step.gate.comparison.verdict != "faster"


def _gate_sentence(before: StepReport, step: StepReport) -> str:
    for fact, verb in (("undone", "was undone"), ("changed nothing", "changed nothing")):
        if fact in step.facts:
            return f"{step.name} {verb}: {step.facts[fact]}."
    assert step.gate is not None  # the caller asked
    beside = step.gate.comparison
    file = _size_words(before.engine.file_bytes / max(step.engine.file_bytes, 1))
    reasons = f" Why: {'; '.join(step.gate.diagnosis)}." if step.gate.diagnosis else ""
    if step.gate.aim == "size":
        return f"{step.name} did not make the engine's file smaller: {file} beside {before.name}."
    return (
        f"{step.name} did not make the engine faster: {wording.ratio(beside.ratio)} beside {before.name} "
        f"({ratio_detail(beside.interval, beside.verdict)}), file {file}.{reasons}"
    )


def warning_sentences(report: Report) -> tuple[str, ...]:
    """What a reader must know before any number: a machine that was held back, and compressions that did not pay."""
    return (*throttling_sentences(report), *busy_sentences(report.machine), *gate_sentences(report))


def busy_sentences(machine: Machine) -> tuple[str, ...]:
    """That others wanted the processor, too; empty where this run alone may have kept it busy."""
    load = None if machine.load is None else machine.load[1]
    if load is None or load <= BUSY * machine.threads:
        return ()
    return (
        f"The machine was busy: in the last 5 minutes, {load:.1f} processes on average wanted its "
        f"{threads_words(machine.threads)}. What takes longer is interrupted more often, so ratios of slow engines to "
        "fast ones can be far off, and their intervals do not show it: measure again on a quieter machine.",
    )


def judged_sentence(report: Report) -> str:
    """Which engine the headline and the goals are about; empty where there is one target only."""
    final = report.steps[-1].engine
    targets = {engine.target.removesuffix(f" {engine.precision}") for engine in report.engines}
    if len(targets) < 2:
        return ""
    return f"Goals are judged by {final.target}, the engine for the first target."


def headline_table(report: Report) -> Table:
    """Teacher beside final engine, and what became of each measure."""
    headline = report.headline
    teacher, final, timing = headline.teacher, headline.final, headline.timing
    latency = wording.decimals_for((timing.baseline.p50_ms, timing.candidate.p50_ms))
    told = metric_words(report)
    rows = (
        (
            Cell(told.axis_title, samples_words(final.engine.score)),
            told.cell(teacher.engine.score),
            told.cell(final.engine.score),
            told.change_cell(headline.score, with_unit=True),
        ),
        (
            Cell("Latency p50 (ms)", f"batch {timing.batch}, {threads_words(final.engine.threads)}"),
            p50_cell(timing.baseline, latency),
            p50_cell(timing.candidate, latency),
            speedup_cell(timing),
        ),
        (
            Cell("Engine file (kB)"),
            *cells(wording.kilobytes(step.engine.file_bytes) for step in (teacher, final)),
            Cell(wording.ratio(headline.file_ratio), "smaller"),
        ),
        (
            Cell("Parameters"),
            *cells(f"{step.parameters:,}" for step in (teacher, final)),
            Cell(wording.ratio(headline.parameters_ratio), "fewer"),
        ),
        (
            Cell("Multiply-accumulates (million)", "one sample"),
            *cells(wording.megabytes(step.macs) for step in (teacher, final)),
            Cell(wording.ratio(headline.macs_ratio), "fewer"),
        ),
    )
    columns = (
        words("Measure"),
        figures("Teacher", teacher.engine.precision),
        figures("Final engine", final.engine.precision),
        figures("Change"),
    )
    note = "The teacher's latency is the one timed in turns with the final engine. 95 % intervals."
    if judged_sentence(report):
        note = f"The final engine is {final.engine.target}, for the first target. {note}"
    return Table("Teacher and final engine", columns, rows, note)


def goals_table(report: Report) -> Table:
    """Each goal, what was reached, and whether that is enough."""
    rows = tuple(
        (
            Cell(goal.goal),
            Cell("✓ met", tone="good") if goal.met else Cell("✗ missed", tone="bad"),
            Cell(_goal_figure(goal.goal, goal.limit)),
            Cell(_goal_figure(goal.goal, goal.value)) if goal.value is not None else not_measured(""),
            Cell(goal.sentence.partition(": ")[2] or goal.sentence),
        )
        for goal in report.goals
    )
    columns = (words("Goal"), words("Verdict"), figures("Asked"), figures("Reached"), words("In words"))
    return Table("Goals", columns, rows, judged_sentence(report))


def _goal_figure(goal: str, value: float) -> str:
    """A limit or what was reached, in the goal's unit."""
    if goal == "max_accuracy_drop":
        points = f"{100 * value:.4g}".replace("-", wording.MINUS)
        return f"{points} {'point' if points == '1' else 'points'}"
    if goal == "max_worsening":
        return f"{100 * value:.4g} %".replace("-", wording.MINUS)
    if goal == "min_speedup":
        return f"{value:.4g}{wording.TIMES}"
    if goal == "max_file_bytes":
        return f"{value:,.0f} bytes"
    return f"{value:.4g} ms" if goal.endswith("_ms") else f"{value:.4g}"


def earned_table(report: Report) -> Table:
    """The waterfall: what each step changed against the step before it."""
    told = metric_words(report)
    columns = (
        words("Step"),
        told.change_column(),
        told.change_column(f"{told.title} in total"),
        figures("Speedup", "p50"),
        figures("Speedup in total", "p50"),
        figures("File", "smaller"),
        figures("Parameters", "fewer"),
        figures("MACs", "fewer"),
    )
    batch = report.steps[0].timing.batch
    note = (
        f"Against the step before, in total against the teacher; latency at batch {batch}. 95 % intervals: of "
        f"speedups by the sign test, both engines timed in turns; {_score_intervals(report)} "
        "“Noise” marks what may be chance."
    )
    if report.steps[0].timing.verdict != NO_CHANGE:
        note += (
            " The A/A check failed: the teacher's engine came out faster or slower than itself, so the machine was not "
            "quiet while it was timed."
        )
    return Table("What each step earned", columns, tuple(_earned_row(row, told) for row in report.earned), note)


def _score_intervals(report: Report) -> str:
    """How the intervals of the metric's changes came about."""
    if any(step.change for step in report.steps):
        return f"of {report.metric.name} by bootstrap, both engines compared sample by sample."
    if report.metric.kind == "share":
        return "of accuracies by Newcombe's square-and-add rule."
    return f"of {report.metric.name} by the square-and-add rule."


def _earned_row(row: Earned, told: MetricWords) -> tuple[Cell, ...]:
    if row.speedup is None or row.score is None or row.score_since_teacher is None:
        control = Cell(
            wording.ratio(row.step.timing.ratio), f"A/A check{AA_VERDICTS[row.step.timing.verdict]}", "quiet"
        )
        start = [Cell("–", tone="quiet")]
        return (Cell(row.step.name, "the baseline"), *start * 3, control, *start * 3)
    speedup = row.speedup
    return (
        Cell(row.step.name),
        told.change_cell(row.score),
        told.change_cell(row.score_since_teacher),
        Cell(wording.ratio(speedup.ratio), ratio_detail(speedup.interval, speedup.verdict), tone_of(speedup.verdict)),
        speedup_cell(row.step.timing),
        *cells(wording.ratio(value) for value in (row.file_ratio, row.parameters_ratio, row.macs_ratio)),
    )


def steps_table(report: Report) -> Table:
    """Every step's engine in absolute numbers."""
    told = metric_words(report)
    columns = (
        words("Step"),
        words("Precision"),
        told.column(),
        figures("p50", "ms"),
        figures("p99", "ms"),
        figures("Speedup", "to teacher"),
        figures("File", "kB"),
        figures("Parameters"),
        figures("MACs", "million"),
        figures("Peak memory", "MB"),
        figures("Time taken", "by the step alone"),
    )
    decimals = wording.decimals_for(step.timing.candidate.p50_ms for step in report.steps)
    first = report.steps[0]
    note = (
        f"{first.engine.runtime} on {first.engine.device}, {threads_words(first.engine.threads)}, batch "
        f"{first.timing.batch}; {told.metric.name} of the engine on {samples_words(first.engine.score)}; 95 % "
        "intervals."
    )
    rows = tuple(_step_row(step, decimals, told) for step in report.steps)
    return Table("Every step's engine", columns, rows, note)


def _step_row(step: StepReport, decimals: int, told: MetricWords) -> tuple[Cell, ...]:
    latency = step.timing.candidate
    return (
        Cell(step.name),
        Cell(step.engine.precision),
        told.cell(step.engine.score),
        p50_cell(latency, decimals),
        p99_cell(latency, decimals),
        speedup_cell(step.timing),
        Cell(wording.kilobytes(step.engine.file_bytes)),
        Cell(f"{step.parameters:,}"),
        Cell(wording.megabytes(step.macs)),
        memory_cell(step.engine),
        Cell(duration_text(step.seconds), "reused" if step.reused else ""),
    )


def machine_table(machine: Machine) -> Table:
    """Where the numbers were taken."""
    return Table("Machine", (words("Fact"), words("Value")), tuple(cells(row) for row in _machine_facts(machine)))


def _machine_facts(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "Processor", machine.cpu_model
    yield "Instruction sets", ", ".join(machine.cpu_flags) or "none that kernels are chosen by"
    yield "Cores", f"{machine.cores}, {threads_words(machine.threads)} usable"
    memory = "not known" if machine.memory_bytes is None else wording.size(machine.memory_bytes)
    yield "Memory", memory
    yield "GPU", machine.gpu or "none"
    yield "System", machine.system
    yield "Python", machine.python
    yield "Libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items()) or "not known"
    load = "not known" if machine.load is None else ", ".join(f"{value:.2f}" for value in machine.load)
    yield "Load over 1, 5, 15 min", load


def run_table(report: Report) -> Table:
    """What was run, when, and how long it took."""
    rows = (
        ("Run", report.name),
        ("Started", f"{report.started:%Y-%m-%d %H:%M:%S %Z}".strip()),
        ("Took", f"{duration_text(report.seconds)}, of which {report.overhead_seconds:.1f} s neither training, "
         "exporting nor measuring"),
        ("Data", report.data),
        ("Classes", f"{len(report.classes)}: {', '.join(report.classes)}" if report.classes else "none"),
        ("Metric", f"{report.metric.name}, {metric_words(report).direction}"),
        ("Seed", str(report.seed)),
        ("Recipe hash", report.recipe_hash),
        ("Report", f"schema version {report.version}"),
    )  # fmt: skip
    return Table("Run", (words("Fact"), words("Value")), tuple(cells(row) for row in rows))


def method_sentences(report: Report) -> tuple[str, ...]:
    """How the numbers came about, for readers who doubt them."""
    of_score, of_changes = _metric_sentences(report)
    sentences = (
        of_score,
        "Latency is host-synchronous: one call after another, each engine in a process of its own. Candidate and "
        "teacher's fp32 engine take turns on the same machine, in at least two rounds of new processes. The speedup is "
        "the median over turns of the quotient of both p50 in a turn, so that what slows one slows the other; it can "
        "differ from the quotient of the p50 in the table. n counts timed calls; outliers are counted, never dropped.",
        "Intervals are 95 %: of the speedup by the sign test over turns, of percentiles by bootstrap over turns; those "
        "of p90 and p99 reach as far as order statistics do, too. A "
        f"percentile is given where ten samples lie beyond it: p90 from {P90_SAMPLES:,} calls on, p99 from "
        f"{P99_SAMPLES:,}. A difference inside its interval, or under 3 %, is called “{NO_CHANGE}”. The teacher's row "
        "compares its engine with itself, which shows the noise.",
        of_changes,
    )
    if any(term.shares for step in report.steps for term in terms_of(step)):
        sentences += (
            "A term's share of the gradient is that of its own gradient's length, looked at in one step of an epoch; "
            "the mean is over all epochs that were looked at.",
        )
    return sentences


def _metric_sentences(report: Report) -> tuple[str, str]:
    """What the metric and its intervals are, and what the intervals of its changes are."""
    metric = report.metric
    if metric.kind == "share":
        return (
            "Accuracy is the engine's own, over the whole test split; its interval is Wilson's (1927), 95 %.",
            "Differences of accuracy have Newcombe's interval (1998, method 10), which takes the samples for "
            "independent. The engines saw the same samples, so it errs towards calling a difference noise.",
        )
    of_what = "the mean of the task's own value of each sample"
    if metric.kind == "root_mean":
        of_what = "the square root of the mean over samples of each sample's mean squared error"
    return (
        f"{metric.name} is the engine's own, over the whole test split: {of_what}; {metric_words(report).direction}. "
        "Its interval is a 95 % bootstrap over samples (Efron 1979).",
        f"Differences of {metric.name} have the bootstrap's interval, too: every draw takes the same samples of both "
        "engines, so that what is hard about a sample cancels.",
    )


def _speed_words(timing: Comparison) -> str:
    if timing.verdict == NO_CHANGE:
        return "Not measurably faster or slower"
    if timing.verdict == "slower":
        return f"{wording.ratio_in_words(1 / timing.ratio)} slower"
    return f"{wording.ratio_in_words(timing.ratio)} faster"


def _size_words(file_ratio: float | None) -> str:
    if file_ratio is None:
        return "empty"
    if file_ratio >= 1:
        return f"{wording.ratio_in_words(file_ratio)} smaller"
    return f"{wording.ratio_in_words(1 / file_ratio)} larger"


def tables_of(report: Report) -> Iterator[Table]:
    """The tables that every view shows, in the order in which a reader asks."""
    yield headline_table(report)
    ranked = ranking_table(report)
    if ranked is not None:
        yield ranked
    if report.goals:
        yield goals_table(report)
    yield earned_table(report)
    yield steps_table(report)
    yield engines_table(report)
    yield parity_table(report)
    remarks = remarks_table(report)
    if remarks is not None:
        yield remarks
    yield latency_table("The final engines' latency", [(engine.target, engine) for engine in report.engines])
    for table in (device_latency_table(report), device_state_table(report)):
        if table is not None:
            yield table
    yield from scenario_tables(report)
