"""What is said of the offline and the server scenario."""

from collections.abc import Iterator, Sequence

from ...export.measurement import Offline, OfflinePoint, Server
from ..report import Report
from . import wording
from .tables import Cell, Table, figures, words


def scenario_tables(report: Report) -> Iterator[Table]:
    """Of the teacher's engine and the final ones; none for a scenario that no target asks for."""
    teacher = report.steps[0]
    engines = [(f"{teacher.name}: {teacher.engine.target}", teacher.engine)]
    engines += [(engine.target, engine) for engine in report.engines]
    offline = [(name, engine.offline) for name, engine in engines if engine.offline]
    server = [(name, engine.server) for name, engine in engines if engine.server]
    if offline:
        yield offline_table(offline)
    if server:
        yield server_table(server)


def offline_table(found: Sequence[tuple[str, Offline]]) -> Table:
    """Throughput at every batch size that was tried."""
    columns = (words("Engine"), figures("Batch"), figures("Throughput", "samples/s"), words("Where"))
    rows = tuple(_offline_row(name, offline, point) for name, offline in found for point in offline.sweep)
    note = (
        "All samples at once, in batches of one size; the sizes timed in turns; 95 % intervals. The knee is the "
        "smallest batch size that reaches nine tenths of the best throughput."
    )
    return Table("Offline", columns, rows, note)


def _offline_row(name: str, offline: Offline, point: OfflinePoint) -> tuple[Cell, ...]:
    marks = [mark for mark, batch in (("best", offline.best.batch), ("knee", offline.knee)) if batch == point.batch]
    decimals = wording.decimals_for([point.throughput])
    throughput = Cell(
        wording.plain(point.throughput, decimals),
        wording.interval(point.interval, decimals),
        "good" if "best" in marks else "plain",
    )
    return Cell(name), Cell(str(point.batch)), throughput, Cell(", ".join(marks))


def server_table(found: Sequence[tuple[str, Server]]) -> Table:
    """The highest rate of each engine, and how long its queries waited."""
    columns = (
        words("Engine"),
        figures("Bound", "p99, ms"),
        figures("Rate", "queries/s"),
        figures("p50", "ms"),
        figures("p99", "ms"),
        figures("Queries"),
        figures("Replayed", "s"),
        figures("Trials"),
        words("Batches"),
    )
    note = (
        "Queries of one sample arrive by a Poisson process; a latency counts from arrival to answer. The rate was "
        "found by bisection and then replayed with other arrivals, and is told only as far as it held."
    )
    return Table("Server", columns, tuple(_server_row(name, server) for name, server in found), note)


def _server_row(name: str, server: Server) -> tuple[Cell, ...]:
    bound = Cell(wording.figure(server.bound_ms))
    searched = (
        Cell(str(len(server.trials) + len(server.replays))),
        Cell("one query a run" if server.max_batch == 1 else f"up to {server.max_batch} waiting queries a run"),
    )
    best = server.best
    if best is None or best.p99_ms is None:
        return (Cell(name), bound, Cell("none", _none_words(server), "bad"), *[Cell("–", tone="quiet")] * 4, *searched)
    lowered = f"lowered from {wording.figure(server.replays[0].rate)}" if len(server.replays) > 1 else ""
    decimals = wording.decimals_for([best.p50_ms])
    interval = "" if best.p99_interval is None else wording.interval(best.p99_interval, decimals)
    return (
        Cell(name),
        bound,
        Cell(wording.figure(best.rate), lowered, "good"),
        Cell(wording.plain(best.p50_ms, decimals)),
        Cell(wording.plain(best.p99_ms, decimals), interval),
        Cell(f"{best.queries:,}"),
        Cell(wording.figure(best.seconds)),
        *searched,
    )


def _none_words(server: Server) -> str:
    if server.replays:
        lowest = wording.figure(server.replays[-1].rate)
        return f"{lowest} did not hold in a replay either"
    return f"p99 over the bound even at {wording.figure(server.trials[-1].rate)}"
