"""Facts about which batches a server is told to make."""

import numpy as np
import pytest

from potstill.export.bundle.batching import batching_of
from potstill.export.measurement import EngineMeasurement, Interval, Offline, OfflinePoint
from tests.pipeline import sample_report


def engine(**throughput_by_batch: float) -> EngineMeasurement:
    """Measured at these batches in single calls, one after the other."""
    sketch = sample_report.SKETCHES[-1]
    made = sample_report.engine(sketch, 3.0)
    latency = tuple(
        timing.model_copy(
            update={"batch": batch, "candidate": timing.candidate.model_copy(update={"throughput": throughput})}
        )
        for timing in made.latency[:1]
        for batch, throughput in ((int(name.removeprefix("b")), value) for name, value in throughput_by_batch.items())
    )
    return made.model_copy(update={"latency": latency})


def offline(knee: int, **throughput_by_batch: float) -> Offline:
    points = tuple(
        OfflinePoint(batch=int(name.removeprefix("b")), throughput=value, interval=Interval(low=value, high=value))
        for name, value in throughput_by_batch.items()
    )
    best = points[int(np.argmax([point.throughput for point in points]))]
    return Offline(best=best, sweep=points, knee=knee)


class TestBatching:
    def test_the_knee_is_the_smallest_batch_with_nine_tenths_of_the_best_throughput(self) -> None:
        found = batching_of(engine(b1=1000, b8=4500, b32=4900, b64=5000))
        assert (found.preferred, found.largest) == (8, 64)
        assert found.reason == "batch 8 reaches 4,500 samples/s of the best 5,000"

    def test_a_throughput_that_still_rises_is_said_to(self) -> None:
        assert batching_of(engine(b1=1000, b8=4000)).reason.endswith(
            "larger ones were not measured, and may reach more"
        )

    def test_a_query_waits_for_company_as_long_as_the_batch_then_computes(self) -> None:
        assert batching_of(engine(b1=1000, b8=4000)).delay_us == 2000

    def test_the_offline_scenario_decides_where_it_was_measured(self) -> None:
        measured = engine(b1=1000, b8=900).model_copy(update={"offline": offline(4, b1=100, b4=390, b16=400)})
        found = batching_of(measured)
        assert (found.preferred, found.largest, found.delay_us) == (4, 16, round(1e6 * 4 / 390))

    def test_nothing_waits_where_single_queries_are_as_fast(self) -> None:
        found = batching_of(engine(b1=950, b8=1000))
        assert (found.preferred, found.delay_us, found.largest) == (None, None, 8)
        assert "waiting for company would gain little" in found.reason

    @pytest.mark.parametrize("batch", [1, 8])
    def test_one_measured_batch_shows_no_knee(self, batch: int) -> None:
        found = batching_of(engine(**{f"b{batch}": 1000}))
        assert (found.preferred, found.largest) == (None, batch)
        assert found.reason.startswith(f"only batch {batch} was measured")
