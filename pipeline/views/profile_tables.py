"""What a profile or a self-check says, as tables and sentences."""

import statistics
from collections.abc import Iterator, Sequence

from ...export.measurement import Comparison, Interval, Latency, NotMeasured, OperatorTime
from ...export.self_check import MAX_FALSE_ALARMS, MIN_POWER, SLOWDOWN, Rate, SelfCheck
from ..profile import Profile, ProfiledEngine
from . import wording
from .engine_tables import p50_cell, p90_cell, p99_cell, speedup_cell
from .scenario_tables import offline_table, server_table
from .tables import Cell, Table, cells, figures, not_measured, words

LATENCY_NOTE = (
    "One call after another, the engines timed in turns; 95 % intervals. “Noise” marks a difference to the first "
    "engine that may be chance, or is under 3 %."
)


def profile_tables(profile: Profile) -> Iterator[Table]:
    """Those of what was asked for."""
    yield latency_table(profile)
    if any(entry.device_latency for entry in profile.entries):
        yield _device_table(profile)
    offline = [(entry.name, entry.offline) for entry in profile.entries if entry.offline]
    server = [(entry.name, entry.server) for entry in profile.entries if entry.server]
    if offline:
        yield offline_table(offline)
    if server:
        yield server_table(server)
    if any(isinstance(entry.layers, tuple) for entry in profile.entries):
        yield layers_table(profile.entries)


def latency_table(profile: Profile) -> Table:
    """Every engine at every batch size."""
    decimals = wording.decimals_for(each.p50_ms for entry in profile.entries for each in entry.latency)
    columns = (
        words("Engine"),
        figures("Batch"),
        figures("n"),
        figures("p50", "ms"),
        figures("p90", "ms"),
        figures("p99", "ms"),
        figures("Throughput", "samples/s"),
        figures("Outliers"),
        figures("Peak memory", "MB"),
        figures("Speed", "to the first"),
    )
    rows = tuple(
        (
            *_latency_cells(entry, each.candidate, decimals),
            Cell(str(each.candidate.outliers)),
            _memory_cell(entry),
            _beside_cell(profile, entry, each),
        )
        for entry in profile.entries
        for each in entry.beside_first
    )
    return Table("Latency", columns, rows, LATENCY_NOTE)


def _latency_cells(entry: ProfiledEngine, latency: Latency, decimals: int) -> tuple[Cell, ...]:
    return (
        Cell(entry.name, f"{entry.runtime} {entry.device}, {entry.threads} thread{'s' if entry.threads > 1 else ''}"),
        *cells((str(latency.batch), f"{latency.samples:,}")),
        p50_cell(latency, decimals),
        p90_cell(latency, decimals),
        p99_cell(latency, decimals),
        Cell(wording.plain(latency.throughput, wording.decimals_for([latency.throughput]))),
    )


def _memory_cell(entry: ProfiledEngine) -> Cell:
    if entry.peak_memory_bytes is None:
        return not_measured("the system does not tell")
    return Cell(wording.megabytes(entry.peak_memory_bytes))


def _beside_cell(profile: Profile, entry: ProfiledEngine, comparison: Comparison) -> Cell:
    return Cell("–", tone="quiet") if entry is profile.entries[0] else speedup_cell(comparison)


def _device_table(profile: Profile) -> Table:
    found = [(entry, each) for entry in profile.entries for each in entry.device_latency]
    decimals = wording.decimals_for(each.p50_ms for _, each in found)
    columns = (
        words("Engine"),
        figures("Batch"),
        figures("n"),
        figures("p50", "ms"),
        figures("p90", "ms"),
        figures("p99", "ms"),
        figures("Throughput", "samples/s"),
    )
    rows = tuple(_latency_cells(entry, each, decimals) for entry, each in found)
    return Table("Latency by the device's own clock", columns, rows)


def layers_table(entries: Sequence[ProfiledEngine]) -> Table:
    """The engines' layers side by side, in the order in which the first engine that has them runs them."""
    told = [(entry.name, entry.layers) for entry in entries if isinstance(entry.layers, tuple)]
    times = [_by_layer(layers) for _, layers in told]
    layers = list(dict.fromkeys(layer for each in times for layer in each))
    decimals = min(4, wording.decimals_for(ms for each in times for ms in each.values()))
    rows = tuple(
        (Cell(layer or "put in by the runtime"), *(_layer_cell(each, layer, decimals) for each in times))
        for layer in layers
    )
    total = (Cell("All"), *(Cell(wording.plain(sum(each.values()), decimals)) for each in times))
    note = (
        "In the runtime's own profile, medians of each operator's calls: profiling slows small operators down, so "
        "these are shares to compare and no latencies."
    )
    note += "".join(
        f" {entry.name}: not measured ({entry.layers.reason})."
        for entry in entries
        if isinstance(entry.layers, NotMeasured)
    )
    columns = (words("Layer"), *(figures(name, "ms") for name, _ in told))
    return Table("Layers", columns, (*rows, total), note)


def _by_layer(layers: Sequence[OperatorTime]) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in layers:
        found[each.layer] = found.get(each.layer, 0.0) + each.ms
    return found


def _layer_cell(times: dict[str, float], layer: str, decimals: int) -> Cell:
    if layer not in times:
        return Cell("–", tone="quiet")
    return Cell(wording.plain(times[layer], decimals), f"{100 * times[layer] / max(sum(times.values()), 1e-12):.1f} %")


def self_check_table(found: SelfCheck) -> Table:
    """False alarms and power, each beside what is asked of it."""
    same, slowed = statistics.median(found.same_ratios), statistics.median(found.slowed_ratios)
    rows = (
        (
            Cell("an engine with itself", "a verdict is a false alarm"),
            *_rate_cells(found.false_alarms, MAX_FALSE_ALARMS, at_most=True),
            _ratio_cell(same, found.same_ratios),
        ),
        (
            Cell(f"with {100 * SLOWDOWN:.0f} % more work in each run", "“slower” is right"),
            *_rate_cells(found.found, MIN_POWER, at_most=False),
            _ratio_cell(slowed, found.slowed_ratios),
        ),
    )
    columns = (
        words("Comparison"),
        figures("Verdicts"),
        figures("Share", "%"),
        figures("Asked", "%"),
        figures("Ratio found", "median; lowest to highest"),
    )
    return Table(f"Self-check: {found.engine}", columns, rows)


def _rate_cells(rate: Rate, asked: float, *, at_most: bool) -> tuple[Cell, ...]:
    met = rate.share <= asked if at_most else rate.share >= asked
    interval = wording.interval(rate.interval, 1, 100)
    return (
        Cell(f"{rate.hits} of {rate.count}"),
        Cell(f"{100 * rate.share:.1f}", interval, "good" if met else "bad"),
        Cell(f"{'at most' if at_most else 'at least'} {100 * asked:.0f}"),
    )


def _ratio_cell(median: float, ratios: Sequence[float]) -> Cell:
    return Cell(f"{median:.3f}", wording.interval(Interval(low=min(ratios), high=max(ratios)), 3))
