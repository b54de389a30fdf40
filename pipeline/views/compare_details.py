"""What a comparison says in detail: goals, steps, all engines, and how recipes and machines differ."""

from collections.abc import Iterator

from ...export.measurement import Machine
from ..comparison.compare import Compared
from ..comparison.contender import Contender, Profiled, Run
from . import wording
from .compare_cells import marked, metric_column, named, score_cell, told_of
from .engine_tables import energy_cell, p50_cell, p99_cell, speedup_cell, tone_of
from .tables import Cell, Table, cells, figures, not_measured, words


def goals_table(compared: Compared) -> Table:
    """Each run's goals."""
    rows = tuple(
        (
            named(Cell(run.label), compared, run.machine),
            Cell(goal.goal),
            Cell("✓ met", tone="good") if goal.met else Cell("✗ missed", tone="bad"),
            Cell(goal.sentence.partition(": ")[2] or goal.sentence),
        )
        for run in compared.runs
        for goal in run.report.goals
    )
    return Table("Goals", (words("Run"), words("Goal"), words("Verdict"), words("In words")), rows)


def steps_table(compared: Compared) -> Table:
    """What each step of each run earned."""
    change = figures("Change", "by the step")
    if compared.runs and compared.same_metric:
        first = told_of(compared, compared.runs[0].main[0])
        change = first.change_column(f"{first.title} change", "by the step")
    columns = (
        words("Step"),
        metric_column(compared),
        change,
        figures("Speed", "by the step"),
        figures("Speedup", "to its own teacher"),
        figures("File", "kB"),
        figures("MACs", "million"),
    )
    rows = tuple(row for run in compared.runs for row in _step_rows(compared, run))
    return Table("What each step earned", columns, rows)


def _step_rows(compared: Compared, run: Run) -> Iterator[tuple[Cell, ...]]:
    nothing = Cell("–", tone="quiet")
    for row, engine in zip(run.report.earned, run.steps, strict=True):
        told, speedup, score = told_of(compared, engine), row.speedup, row.score
        speed = speedup and Cell(
            wording.ratio(speedup.ratio), wording.interval(speedup.interval, 2), tone_of(speedup.verdict)
        )
        change = score and Cell(told.change(score.value), told.change_interval(score.interval))
        measured = (score_cell(compared, engine), change, speed)
        yield (
            named(Cell(f"{run.letter} {row.step.name}"), compared, run.machine),
            *(marked(cell, compared, run.machine) if cell else nothing for cell in measured),
            marked(speedup_cell(row.step.timing), compared, run.machine),
            Cell(wording.kilobytes(row.step.engine.file_bytes)),
            Cell(wording.megabytes(row.step.macs)),
        )


def engines_table(compared: Compared) -> Table:
    """Every final or profiled engine at every batch size."""
    engines = [engine for engine in compared.engines if engine.is_final]
    decimals = wording.decimals_for(each.p50_ms for engine in engines for each in engine.latency)
    columns = (
        words("Engine"),
        words("Target"),
        figures("Batch"),
        figures("Threads"),
        figures("n"),
        figures("p50", "ms"),
        figures("p99", "ms"),
        figures("Throughput", "samples/s"),
        metric_column(compared),
        figures("Energy", "mJ a sample"),
    )
    rows = tuple(row for engine in engines for row in _engine_rows(compared, engine, decimals))
    if not compared.runs:
        kept = [column.title for column in columns if column.title not in (metric_column(compared).title, "Energy")]
        return Table("All profiled engines", columns, rows).only(*kept)
    return Table("All final engines", columns, rows).without_unmeasured()


def _engine_rows(compared: Compared, engine: Contender, decimals: int) -> Iterator[tuple[Cell, ...]]:
    for latency in engine.latency:
        energy = energy_cell(engine.measurement) if engine.measurement else not_measured("a profile does not tell")
        measured = (
            p50_cell(latency, decimals),
            p99_cell(latency, decimals),
            Cell(wording.plain(latency.throughput, 0)),
            score_cell(compared, engine),
            energy,
        )
        yield (
            named(Cell(engine.label, engine.mark), compared, engine.machine),
            Cell(engine.target),
            *cells((str(latency.batch), str(engine.threads), f"{latency.samples:,}")),
            *(marked(cell, compared, engine.machine) for cell in measured),
        )


def settings_table(compared: Compared) -> Table:
    """Where the recipes differ."""
    columns = (words("Setting"), *(words(run.label) for run in compared.runs))
    rows = tuple(cells((name, *values)) for name, values in compared.different_settings())
    return Table("Different settings", columns, rows)


def machines_table(compared: Compared) -> Table:
    """Where the machines differ."""
    columns = (words("Fact"), *(words(source.label) for source in compared.sources))
    rows = tuple(cells((name, *values)) for name, values in compared.machine_differences())
    return Table("Different machines", columns, rows)


def sources_table(compared: Compared) -> Table:
    """Which runs and profiles these are."""
    heads = ("Run or profile", "Path", "Started", "Machine", "Data or files", "Recipe hash")
    rows: list[tuple[Cell, ...]] = []
    for source in compared.sources:
        is_run = isinstance(source, Run)
        started = source.report.started if is_run else source.profile.started
        rows.append(
            (
                named(Cell(source.label), compared, source.machine),
                Cell(str(source.path)),
                Cell(f"{started:%Y-%m-%d %H:%M %Z}".strip()),
                Cell(_machine_words(source.machine)),
                Cell(source.report.data if is_run else _files(source)),
                Cell(source.report.recipe_hash[:16] if is_run else "–"),
            )
        )
    return Table("Runs and profiles", tuple(map(words, heads)), tuple(rows))


def _files(profiled: Profiled) -> str:
    return ", ".join(f"{engine.mark} {engine.file}" for engine in profiled.engines)


def _machine_words(machine: Machine) -> str:
    return f"{machine.cpu_model}, {machine.gpu}" if machine.gpu else machine.cpu_model
