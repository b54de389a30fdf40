"""Facts about which engine beats which."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

from potstill.export.measurement import Accuracy, Latency
from potstill.pipeline.comparison.contender import Contender, Run
from potstill.pipeline.comparison.pareto import Standing, standings

FLOOR = 0.03


def engines(samples: ModuleType, *places: tuple[str, float, int]) -> list[Contender]:
    """Of (mark, p50 in milliseconds, correct of 10,000) each."""
    report = samples.sample_report(count=10_000)
    (one,) = Run("A", Path("a"), report).main
    return [
        replace(
            one,
            mark=mark,
            latency=(latency(samples, p50),),
            score=Accuracy(correct=correct, count=10_000),
        )
        for mark, p50, correct in places
    ]


def latency(samples: ModuleType, p50_ms: float) -> Latency:
    return samples.latency(1, p50_ms, 1000)


def by_mark(found: tuple[Standing, ...]) -> dict[str, Standing]:
    return {each.engine.mark: each for each in found}


class TestStandings:
    def test_an_engine_is_beaten_by_those_on_the_front_that_are_better(self, samples: ModuleType) -> None:
        found = by_mark(
            standings(
                engines(samples, ("fast", 1, 8000), ("good", 3, 9500), ("beaten", 4, 7000), ("mid", 2, 7900)), 1, FLOOR
            )
        )
        assert [mark for mark, each in found.items() if each.on_front] == ["fast", "good"]
        assert [rival.engine.mark for rival in found["beaten"].rivals] == ["fast", "good"]
        assert [rival.engine.mark for rival in found["mid"].rivals] == ["fast"]
        assert all(rival.beyond_noise for rival in found["mid"].rivals)

    def test_a_difference_that_may_be_chance_is_no_sure_win(self, samples: ModuleType) -> None:
        found = by_mark(standings(engines(samples, ("one", 1.0, 9000), ("other", 1.01, 8990)), 1, FLOOR))
        (rival,) = found["other"].rivals
        assert not rival.beyond_noise

    def test_on_the_front_what_differs_in_neither_is_level(self, samples: ModuleType) -> None:
        found = by_mark(standings(engines(samples, ("a", 1.0, 9000), ("b", 1.01, 9010), ("c", 2.0, 9500)), 1, FLOOR))
        assert all(each.on_front for each in found.values())
        assert [each.mark for each in found["a"].level] == ["b"]
        assert found["c"].level == ()

    def test_only_engines_of_one_machine_and_the_same_samples_are_rivals(self, samples: ModuleType) -> None:
        best, other = engines(samples, ("best", 1, 9500), ("other", 2, 9000))
        assert other.ground is not None
        for apart in (
            replace(other, machine=samples.machine("Another Processor")),
            replace(other, ground=replace(other.ground, data="other digits")),
        ):
            assert all(each.on_front for each in standings([best, apart], 1, FLOOR))
        assert not all(each.on_front for each in standings([best, other], 1, FLOOR))

    def test_engines_without_a_score_or_the_batch_have_no_place(self, samples: ModuleType) -> None:
        best, unscored, other = engines(samples, ("best", 1, 9500), ("unscored", 2, 9000), ("other", 3, 9000))
        other = replace(other, latency=(samples.latency(8, 3.0, 1000),))
        found = standings([best, replace(unscored, score=None, ground=None), other], 1, FLOOR)
        assert [each.engine.mark for each in found] == ["best"]
