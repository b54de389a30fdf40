"""Facts about batch sizes and the best of them."""

import numpy as np
import pytest
from onnx.helper import make_node

from potstill.export.offline import summary
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.runtimes.tensorrt_runtime import TensorRTTarget
from potstill.export.scenarios import OfflineScenario, ServerScenario, batch_sizes
from tests.support.onnx_files import model


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (48, (1, 2, 4, 8, 16, 32, 48))]
)
def test_batch_sizes_are_powers_of_two_up_to_the_largest(largest: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(largest) == sizes


def test_an_engine_must_take_every_batch_size_that_any_measurement_needs() -> None:
    target = OnnxRuntimeTarget(batch=(1, 3), offline=OfflineScenario(max_batch=4), server=ServerScenario(p99_ms=5))
    assert target.all_batches == (1, 2, 3, 4)


def test_a_plan_of_tensorrt_takes_the_batches_of_the_scenarios_too() -> None:
    relu = model(make_node("Relu", ["x"], ["y"], "only"))
    plain = TensorRTTarget(batch=(2, 4))
    asked = TensorRTTarget(batch=(2, 4), offline=OfflineScenario(max_batch=16))
    assert plain.plan(relu).profile["x"].most == (4, 4)
    assert asked.plan(relu).profile["x"].most == (16, 4)
    assert asked.plan(relu).profile["x"].usual == plain.plan(relu).profile["x"].usual == (2, 4)
    assert asked.build_settings() != plain.build_settings()


class TestSummary:
    def test_the_best_size_and_the_knee_follow_from_the_throughput(self) -> None:
        seconds = {1: 0.010, 2: 0.012, 4: 0.0175, 8: 0.034, 16: 0.080}
        found = summary({batch: [np.full(5, each)] * 10 for batch, each in seconds.items()})
        assert [round(point.throughput) for point in found.sweep] == [100, 167, 229, 235, 200]
        assert found.best.batch == 8
        assert found.knee == 4

    def test_an_interval_is_as_wide_as_the_turns_differ(self) -> None:
        draws = np.random.default_rng(0)
        turns = [0.01 * np.exp(draws.normal(0, 0.05)) * np.ones(20) for _ in range(10)]
        (point,) = summary({4: turns}).sweep
        assert point.interval.low < point.throughput < point.interval.high
        assert 0.02 < point.interval.high / point.interval.low - 1 < 0.12
        (steady,) = summary({4: [np.full(20, 0.01)] * 10}).sweep
        assert steady.interval.low == pytest.approx(steady.interval.high) == pytest.approx(400)
