"""Facts about the search for the highest rate, on a queue whose engine always takes the same time."""

import numpy as np
import pytest

from potstill.export.measurement import ServerTrial
from potstill.export.scenarios import ServerScenario
from potstill.export.server import queries_of, searched, trial_of
from potstill.export.server_load import arrivals

SERVICE_MS = 1.0


def trial(scenario: ServerScenario, *, slower_after: float = np.inf) -> "Simulated":
    return Simulated(scenario, slower_after)


class Simulated:
    """An engine that takes a millisecond, by Lindley's recursion; in trials that last longer, perhaps more."""

    def __init__(self, scenario: ServerScenario, slower_after: float) -> None:
        self._bound_ms = scenario.p99_ms
        self._slower_after = slower_after
        self.calls: list[tuple[float, float, int]] = []

    def __call__(self, rate: float, seconds: float, seed: int) -> ServerTrial:
        self.calls.append((rate, seconds, seed))
        arriving = arrivals(rate, queries_of(rate, seconds), seed)
        service = SERVICE_MS / 1e3 * (1.1 if seconds > self._slower_after else 1.0)
        free, found = 0.0, np.empty(len(arriving))
        for index, moment in enumerate(arriving):
            free = max(free, moment) + service
            found[index] = free - moment
        return trial_of(rate, arriving, found, self._bound_ms)


class TestSearched:
    def test_the_rate_is_the_highest_one_whose_p99_meets_the_bound(self) -> None:
        scenario = ServerScenario(p99_ms=5.0, seconds=20, replay_seconds=30)
        found = searched(trial(scenario), 1000.0, scenario)
        assert found.best is not None
        assert found.best.p99_ms is not None
        assert found.best.p99_ms <= 5.0
        # Of M/D/1, waiting at most four service times has the probability 0.9901 at a load of 0.56 (Erlang 1909).
        assert found.best.rate == pytest.approx(560, rel=0.06)
        missed = [each.rate for each in found.trials if not each.met]
        assert min(missed) <= found.replays[0].rate * 1.06

    def test_every_trial_has_enough_queries_for_its_percentile(self) -> None:
        scenario = ServerScenario(p99_ms=5.0, seconds=0.1, replay_seconds=0.1)
        found = searched(trial(scenario), 1000.0, scenario)
        assert {each.queries for each in (*found.trials, *found.replays)} == {1000}
        assert all(each.p99_interval for each in found.replays)

    def test_a_rate_that_does_not_hold_is_lowered_until_one_does(self) -> None:
        scenario = ServerScenario(p99_ms=5.0, seconds=5, replay_seconds=20)
        found = searched(trial(scenario, slower_after=10), 1000.0, scenario)
        assert len(found.replays) > 1
        assert [each.met for each in found.replays] == [False] * (len(found.replays) - 1) + [True]
        assert found.best == found.replays[-1]
        assert found.best.rate < max(each.rate for each in found.trials if each.met)

    def test_replays_see_other_arrivals_than_the_search(self) -> None:
        scenario = ServerScenario(p99_ms=5.0, seconds=1, replay_seconds=2)
        simulated = trial(scenario)
        searched(simulated, 1000.0, scenario)
        assert {seed for _, seconds, seed in simulated.calls if seconds == 1} == {0}
        assert 0 not in {seed for _, seconds, seed in simulated.calls if seconds == 2}

    def test_an_engine_slower_than_the_bound_has_no_rate(self) -> None:
        scenario = ServerScenario(p99_ms=0.9, seconds=1)
        found = searched(trial(scenario), 1000.0, scenario)
        assert found.best is None
        assert found.replays == ()
        assert not any(each.met for each in found.trials)


class TestTrial:
    def test_one_that_was_broken_off_has_no_percentile_and_is_missed(self) -> None:
        arriving = arrivals(100.0, 1000, seed=0)
        found = trial_of(100.0, arriving, np.full(200, 0.001), 5.0)
        assert (found.queries, found.p99_ms, found.met) == (200, None, False)
