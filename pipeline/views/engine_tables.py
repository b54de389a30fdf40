"""What is said of engines: cells and tables that reports and comparisons share."""

from collections.abc import Sequence

from ...export.measurement import (
    P90_SAMPLES,
    P99_SAMPLES,
    Audit,
    Comparison,
    EngineMeasurement,
    Interval,
    Latency,
    LayerPrecision,
    LayerType,
    NotMeasured,
    Score,
)
from ...export.target import scheme_of
from ..report import Report
from . import wording
from .metric_words import MetricWords
from .tables import Cell, Table, Tone, cells, figures, not_measured, words

NO_CHANGE = "no significant difference"


def latency_table(title: str, engines: Sequence[tuple[str, EngineMeasurement]]) -> Table:
    """Every engine at every batch size, with everything that was found about its latency."""
    decimals = wording.decimals_for(each.candidate.p50_ms for _, engine in engines for each in engine.latency)
    columns = (
        words("Engine"),
        figures("Batch"),
        figures("Threads"),
        figures("n"),
        figures("p50", "ms"),
        figures("p90", "ms"),
        figures("p99", "ms"),
        figures("Mean", "ms"),
        figures("Throughput", "samples/s"),
        figures("Outliers"),
        figures("Speedup", "to teacher's fp32"),
    )
    rows = tuple(
        _latency_row(name, engine.threads, timing, decimals) for name, engine in engines for timing in engine.latency
    )
    return Table(title, columns, rows)


def _latency_row(name: str, threads: int, timing: Comparison, decimals: int) -> tuple[Cell, ...]:
    latency = timing.candidate
    return (
        Cell(name),
        *cells((str(latency.batch), str(threads), f"{latency.samples:,}")),
        p50_cell(latency, decimals),
        p90_cell(latency, decimals),
        p99_cell(latency, decimals),
        Cell(wording.plain(latency.mean_ms, decimals)),
        Cell(wording.plain(latency.throughput, 0)),
        Cell(str(latency.outliers)),
        speedup_cell(timing),
    )


def engines_table(report: Report) -> Table:
    """The final artifact's engines."""
    # A run that stops before `quantize` may have no final engine yet.
    told = MetricWords.of(engine.score for engine in (report.steps[-1].engine, *report.engines))
    columns = (
        words("Engine"),
        told.column(),
        figures("File", "kB"),
        figures("Peak memory", "MB"),
        figures("Energy", "mJ a sample"),
        figures("MACs as asked", "%"),
        words("File in the run"),
    )
    rows = tuple(
        (
            Cell(engine.target),
            told.cell(engine.score),
            Cell(wording.kilobytes(engine.file_bytes)),
            memory_cell(engine),
            energy_cell(engine),
            _share_cell(engine),
            Cell(engine.file),
        )
        for engine in report.engines
    )
    return Table("The final engines", columns, rows).without_unmeasured()


def _share_cell(engine: EngineMeasurement) -> Cell:
    """The share of the multiply-accumulates that run in the precision the engine was built for."""
    if engine.audit is None:
        return Cell("not audited", f"{engine.precision} engine", "quiet")
    return Cell(wording.percent(engine.audit.int8_share), f"in {engine.audit.precision}")


def parity_table(report: Report) -> Table:
    """Whether each final engine computes what its model computes."""
    columns = (
        words("Engine"),
        words("Against"),
        figures("Samples"),
        figures("Same predictions", "%"),
        figures("Largest error", "absolute"),
        figures("Largest error", "of largest output"),
        words("Verdict"),
        words("Rule"),
    )
    rows = tuple(
        (
            Cell(engine.target),
            Cell(engine.parity.reference),
            Cell(f"{engine.parity.samples:,}"),
            _agreement(engine.parity.agreement),
            Cell(f"{engine.parity.max_absolute:.2g}"),
            Cell(f"{engine.parity.max_relative:.2g}"),
            Cell("✓ passed", tone="good") if engine.parity.passed else Cell("✗ failed", tone="bad"),
            Cell(engine.parity.limit),
        )
        for engine in report.engines
    )
    return Table("Parity with the model", columns, rows)


def remarks_table(report: Report) -> Table | None:
    """What the precision alone would not tell of a final engine; None where there is nothing."""
    rows = tuple((Cell(engine.target), Cell(remark)) for engine in report.engines for remark in engine.remarks)
    return Table("Remarks on the final engines", (words("Engine"), words("Remark")), rows) if rows else None


def _agreement(share: float | None) -> Cell:
    return not_measured("the outputs are not the logits of classes") if share is None else Cell(wording.percent(share))


def audited(report: Report) -> EngineMeasurement | None:
    """The final engine whose layers are listed: the first one that is quantized, else the first that was audited."""
    found = [engine for engine in report.engines if engine.audit is not None]
    return next((engine for engine in found if scheme_of(engine.precision) is not None), found[0] if found else None)


def audit_sentence(audit: Audit) -> str:
    """How much runs in the precision that was asked for, and how much had to."""
    num_so = sum(layer.precision == audit.precision for layer in audit.layers)
    num_left = sum(layer.on_purpose for layer in audit.layers)
    left = f"; {num_left} {'is' if num_left == 1 else 'are'} not, on purpose" if num_left else ""
    asked = f"{left}; at least {wording.percent(audit.min_int8_share)} % was asked" if audit.min_int8_share else left
    asked += " of the others" if num_left and audit.min_int8_share else ""
    return (
        f"{num_so} of {len(audit.layers)} layers run in {audit.precision}, "
        f"{wording.percent(audit.int8_share)} % of the multiply-accumulates{asked}."
    )


def audit_table(audit: Audit) -> Table:
    """Each layer of the graph as the runtime executes it."""
    columns = (words("Layer"), words("Operator"), words("Precision"), figures("MACs", "one sample"), words("Reason"))
    return Table("Layers", columns, tuple(_audit_row(layer, audit.precision) for layer in audit.layers))


def otherwise(audit: Audit) -> tuple[LayerPrecision, ...]:
    """The layers that run in another precision than the engine was built for."""
    return tuple(layer for layer in audit.layers if layer.precision != audit.precision)


def _audit_row(layer: LayerPrecision, asked: LayerType) -> tuple[Cell, ...]:
    tone: Tone = "plain" if layer.precision == asked else "quiet" if layer.on_purpose else "bad"
    precision = Cell(layer.precision, "on purpose" if layer.on_purpose else "", tone)
    return (Cell(layer.name), Cell(layer.kind), precision, Cell(f"{layer.macs:,}"), Cell(layer.reason))


def p50_cell(latency: Latency, decimals: int) -> Cell:
    """The median in milliseconds, with its interval."""
    return Cell(wording.plain(latency.p50_ms, decimals), wording.interval(latency.p50_interval, decimals))


def p90_cell(latency: Latency, decimals: int) -> Cell:
    """In milliseconds with its interval, where there were enough samples."""
    return _percentile_cell(latency.p90_ms, latency.p90_interval, latency.samples, P90_SAMPLES, decimals)


def p99_cell(latency: Latency, decimals: int) -> Cell:
    """Likewise."""
    return _percentile_cell(latency.p99_ms, latency.p99_interval, latency.samples, P99_SAMPLES, decimals)


def _percentile_cell(ms: float | None, interval: Interval | None, samples: int, needed: int, decimals: int) -> Cell:
    if ms is None:
        return not_measured(f"{samples:,} of {needed:,} samples")
    return Cell(wording.plain(ms, decimals), "" if interval is None else wording.interval(interval, decimals))


def memory_cell(engine: EngineMeasurement) -> Cell:
    """Of the process that runs the engine, in megabytes, and what it holds of a GPU's."""
    device = engine.device_memory_bytes
    on_device = "" if device is None else f"and {wording.megabytes(device)} on the GPU"
    if engine.peak_memory_bytes is None:
        return not_measured(f"the system does not tell{'; ' if on_device else ''}{on_device}")
    return Cell(wording.megabytes(engine.peak_memory_bytes), on_device)


def energy_cell(engine: EngineMeasurement) -> Cell:
    """Of one sample in millijoules, without what the idle device takes."""
    energy = engine.energy
    if energy is None:
        return not_measured("an older potstill measured it")
    if isinstance(energy, NotMeasured):
        return not_measured(energy.reason)
    device = "GPU" if energy.source == "NVML" else "processor"
    watts = f"{wording.plain(energy.idle_w, 1)} W idle, {wording.plain(energy.busy_w, 1)} W busy"
    return Cell(wording.figure(energy.millijoules), f"{device}, {energy.source}, {watts}")


def speedup_cell(timing: Comparison) -> Cell:
    """To the teacher's engine, with interval and verdict."""
    return Cell(wording.ratio(timing.ratio), ratio_detail(timing.interval, timing.verdict), tone_of(timing.verdict))


def ratio_detail(values: Interval, verdict: str) -> str:
    """A ratio's interval, and whether it may be chance."""
    return wording.interval(values, 2) + (", noise" if verdict == NO_CHANGE else "")


def tone_of(verdict: str) -> Tone:
    """How a verdict on latency is to look."""
    tones: dict[str, Tone] = {"faster": "good", "slower": "bad"}
    return tones.get(verdict, "quiet")


def samples_words(score: Score) -> str:
    """How many samples a score is of."""
    return f"{score.count:,} test samples"


def threads_words(threads: int) -> str:
    """Such as ``1 thread``."""
    return f"{threads} thread{'' if threads == 1 else 's'}"
