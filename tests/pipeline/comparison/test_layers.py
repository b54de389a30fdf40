"""Facts about the layers of two engines side by side."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from potstill.export.measurement import NotMeasured, OperatorTime
from potstill.pipeline.comparison.contender import Contender, Run
from potstill.pipeline.comparison.layers import compared_layers

FLOOR = 0.03


def times(**layers: float) -> tuple[OperatorTime, ...]:
    """Of layers, a double underscore for a dot."""
    return tuple(OperatorTime(layer=name.replace("__", "."), operator="Conv", ms=ms) for name, ms in layers.items())


@pytest.fixture
def engine(samples: ModuleType) -> Contender:
    """Whose p50 is 0.2558 ms."""
    return Run("A", Path("a"), samples.sample_report()).main[0]


class TestComparedLayers:
    def test_are_shares_of_each_engines_p50_the_largest_difference_first(self, engine: Contender) -> None:
        # The second profile was taken while the machine was twice as slow.
        first = replace(engine, operators=times(a=1.0, b=1.0, c=2.0))
        other = replace(engine, operators=times(a=2.0, b=4.0, c=2.0))
        found = compared_layers(first, other, FLOOR)
        p50 = engine.latency[0].p50_ms
        assert [row.layer for row in found.rows] == ["b", "c", "a"] or [row.layer for row in found.rows] == [
            "c",
            "b",
            "a",
        ]
        by_name = {row.layer: row for row in found.rows}
        assert (by_name["a"].before_ms, by_name["a"].after_ms) == (pytest.approx(p50 / 4), pytest.approx(p50 / 4))
        assert {name: row.verdict for name, row in by_name.items()} == {
            "a": "no significant difference",
            "b": "slower",
            "c": "faster",
        }
        assert len(found.beyond_noise) == 2

    def test_small_ratios_and_small_times_are_within_noise(self, engine: Contender) -> None:
        first = replace(engine, operators=times(large=99.0, medium=100.0, tiny=0.5))
        other = replace(engine, operators=times(large=110.0, medium=89.0, tiny=1.5))
        found = compared_layers(first, other, FLOOR)
        assert found.beyond_noise == ()
        assert len(found.rows) == 3

    def test_a_machine_that_drifts_raises_the_ratio_that_counts(self, engine: Contender) -> None:
        first = replace(engine, operators=times(a=1.0, b=1.0))
        other = replace(engine, operators=times(a=1.3, b=0.99))
        assert [row.verdict for row in compared_layers(first, other, 0.0).rows] == ["no significant difference"] * 2
        other = replace(engine, operators=times(a=1.7, b=1.0))
        assert "slower" in [row.verdict for row in compared_layers(first, other, 0.0).rows]
        assert "slower" not in [row.verdict for row in compared_layers(first, other, 0.2).rows]

    def test_factors_are_set_beside_the_layer_that_they_were(self, engine: Contender) -> None:
        whole = replace(engine, operators=times(conv1=2.0, fc=1.0))
        factors = replace(engine, operators=times(conv1__0=0.5, conv1__1=0.5, fc=1.0))
        for first, other, verdict in ((whole, factors, "faster"), (factors, whole, "slower")):
            found = compared_layers(first, other, FLOOR)
            assert {row.layer: row.verdict for row in found.rows}["conv1"] == verdict
            assert (found.only_first_ms, found.only_other_ms) == (0, 0)

    def test_what_only_one_engine_has_is_summed_up(self, engine: Contender) -> None:
        first = replace(engine, operators=times(a=1.0, gone=3.0))
        other = replace(engine, operators=times(a=1.0, new=1.0))
        found = compared_layers(first, other, FLOOR)
        p50 = engine.latency[0].p50_ms
        assert (found.only_first_ms, found.only_other_ms) == (pytest.approx(p50 * 3 / 4), pytest.approx(p50 / 2))

    def test_what_cannot_be_compared_says_why(self, engine: Contender, samples: ModuleType) -> None:
        elsewhere = replace(engine, machine=samples.machine("Another Processor"))
        unknown = replace(engine, mark="B6", operators=NotMeasured(reason="its runtime does not tell"))
        strange = replace(engine, operators=times(another=1.0))
        later = replace(engine, latency=engine.latency[1:])
        reasons = {
            compared_layers(engine, other, FLOOR).reason
            for other in (elsewhere, replace(engine, threads=2), unknown, strange, later)
        }
        assert reasons == {
            "different machines",
            "different threads, 1 and 2",
            "the operators of B6 were not recorded: its runtime does not tell",
            "no layer of the same path",
            "profiled at different batch sizes, 1 and 32",
        }
