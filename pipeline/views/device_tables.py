"""What engines on a GPU say of it: latency by its own clock, its state while it was timed, and what held it back."""

from collections.abc import Iterator

from ...export.measurement import EngineMeasurement, Latency
from ..report import Report
from . import wording
from .engine_tables import p50_cell, p99_cell
from .tables import Cell, Table, figures, words


def throttling_sentences(report: Report) -> tuple[str, ...]:
    """One for each engine whose GPU held its clock back while it was timed."""
    engines = {engine.file: engine for engine in (*(step.engine for step in report.steps), *report.engines)}
    return tuple(sentence for engine in engines.values() for sentence in _throttling(engine))


def _throttling(engine: EngineMeasurement) -> Iterator[str]:
    states = dict(zip(("before", "after"), engine.device_states or (), strict=False))
    held = [f"{when} the timing by {wording.sentence_list(each.throttling)}" for when, each in states.items()
            if each.throttling]  # fmt: skip
    if held:
        yield (
            f"{engine.target} ({engine.file}): the GPU held its clock back, {' and '.join(held)}. Its latency, "
            "throughput and energy are those of a GPU that is held back; cool or free it, and measure again."
        )


def device_latency_table(report: Report) -> Table | None:
    """The host's latency beside the device's own; None where no engine runs on a device with a clock."""
    engines = [engine for engine in report.engines if engine.device_latency]
    if not engines:
        return None
    pairs = [(engine, *each) for engine in engines for each in _pairs(engine)]
    decimals = wording.decimals_for(device.p50_ms for _, _, device in pairs)
    columns = (
        words("Engine"),
        figures("Batch"),
        figures("Host p50", "ms"),
        figures("Device p50", "ms"),
        figures("Device p99", "ms"),
        figures("n", "by the device"),
        figures("Beside the device", "ms, host less device"),
    )
    rows = tuple(
        (
            Cell(engine.target),
            Cell(str(device.batch)),
            p50_cell(host, decimals),
            p50_cell(device, decimals),
            p99_cell(device, decimals),
            Cell(f"{device.samples:,}"),
            Cell(wording.plain(host.p50_ms - device.p50_ms, decimals)),
        )
        for engine, host, device in pairs
    )
    note = (
        "The host's time runs from the call to its outputs, and is what a user waits; the device's from before its "
        "first kernel to behind its last, by its own events. The difference is launching and waiting, which a CUDA "
        "graph or a larger batch makes smaller."
    )
    return Table("On the device's own clock", columns, rows, note)


def _pairs(engine: EngineMeasurement) -> Iterator[tuple[Latency, Latency]]:
    """By the host's clock and by the device's, at each batch size."""
    by_device = {latency.batch: latency for latency in engine.device_latency}
    for timing in engine.latency:
        if timing.batch in by_device:
            yield timing.candidate, by_device[timing.batch]


def device_state_table(report: Report) -> Table | None:
    """What each GPU told of itself before and after it was timed; None without GPUs."""
    engines = [engine for engine in report.engines if engine.device_states]
    if not engines:
        return None
    columns = (
        words("Engine"),
        words("When"),
        figures("Clock", "MHz"),
        figures("Memory clock", "MHz"),
        figures("Temperature", "°C"),
        figures("Power", "W"),
        words("Held back by"),
    )
    rows = tuple(row for engine in engines for row in _state_rows(engine))
    return Table("The GPU before and after", columns, rows, "“Not told” is what the driver does not tell here.")


def _state_rows(engine: EngineMeasurement) -> Iterator[tuple[Cell, ...]]:
    for when, state in zip(("before", "after"), engine.device_states or (), strict=False):
        most = f"of {state.max_sm_clock_mhz:,}" if state.max_sm_clock_mhz is not None else ""
        yield (
            Cell(engine.target),
            Cell(when),
            _told(state.sm_clock_mhz, most),
            _told(state.memory_clock_mhz),
            _told(state.temperature_c),
            Cell("not told", tone="quiet") if state.power_w is None else Cell(wording.plain(state.power_w, 1)),
            Cell(", ".join(state.throttling), tone="bad") if state.throttling else Cell("nothing"),
        )


def _told(value: int | None, detail: str = "") -> Cell:
    return Cell("not told", tone="quiet") if value is None else Cell(f"{value:,}", detail)
