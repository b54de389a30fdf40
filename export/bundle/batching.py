"""Which batches a server should make, from the throughput that was measured at several."""

from dataclasses import dataclass

from ..measurement import EngineMeasurement

ENOUGH = 0.9
"""Of the best throughput: the knee is the smallest batch that reaches it."""


@dataclass(frozen=True)
class Batching:
    """For a server that can wait a little for more queries."""

    largest: int
    """The largest batch that was measured; larger ones are not to be taken."""
    preferred: int | None
    """The knee; None where nothing is gained by waiting."""
    delay_us: int | None
    """How long a query may wait for company: as long as the batch at the knee then takes to compute."""
    reason: str
    """A sentence with the numbers."""


def batching_of(engine: EngineMeasurement) -> Batching:
    """From the offline scenario where it was measured, else from the throughput of single batches in a row."""
    if engine.offline is None:
        throughput = {each.batch: each.candidate.throughput for each in engine.latency}
    else:
        throughput = {point.batch: point.throughput for point in engine.offline.sweep}
    largest, best = max(throughput), max(throughput.values())
    if len(throughput) == 1:
        reason = f"only batch {largest} was measured, so it is not known where throughput stops to rise"
        return Batching(largest, None, None, reason)
    enough = min(batch for batch, reached in throughput.items() if reached >= ENOUGH * best)
    knee = enough if engine.offline is None else engine.offline.knee
    told = f"batch {knee} reaches {throughput[knee]:,.0f} samples/s of the best {best:,.0f}"
    if knee == largest:
        told += "; larger ones were not measured, and may reach more"
    if knee == 1:
        return Batching(largest, None, None, f"{told}: waiting for company would gain little")
    return Batching(largest, knee, round(1e6 * knee / throughput[knee]), told)
