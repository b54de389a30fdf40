"""Facts about queries that arrive by chance, on a clock that only the queue moves."""

import numpy as np
import pytest
from numpy.typing import NDArray

from potstill.export.server_load import arrivals, latencies


class Moments:
    """Time passes by waiting and by answering, and in no other way."""

    def __init__(self, seconds: float, *, for_each: float = 0.0) -> None:
        self._time = 0.0
        self._seconds = seconds
        self._for_each = for_each
        self.sizes: list[int] = []

    def now(self) -> float:
        return self._time

    def wait_until(self, moment: float) -> None:
        self._time = max(self._time, moment)

    def answer(self, size: int) -> None:
        self.sizes.append(size)
        self._time += self._seconds + size * self._for_each


def queued(arriving: NDArray[np.float64], moments: Moments, *sizes: int, bound: float = np.inf) -> NDArray[np.float64]:
    return latencies(arriving, moments.answer, sizes, bound=bound, clock=moments)


class TestArrivals:
    def test_they_come_at_the_rate_and_forget_how_long_nobody_came(self) -> None:
        gaps = np.diff(arrivals(50.0, 20_000, seed=1))
        assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
        # Of a Poisson process, gaps vary as much as they last, and e^-1 of them are longer than the mean.
        assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
        assert (gaps > 1 / 50).mean() == pytest.approx(np.exp(-1), abs=0.01)

    def test_they_are_those_of_their_seed(self) -> None:
        assert (arrivals(5, 100, seed=3) == arrivals(5, 100, seed=3)).all()
        assert (arrivals(5, 100, seed=3) != arrivals(5, 100, seed=4)).all()


class TestLatencies:
    @pytest.mark.parametrize("load", [0.3, 0.7])
    def test_the_mean_wait_is_that_of_a_queue_with_a_constant_service_time(self, load: float) -> None:
        found = queued(arrivals(load, 40_000, seed=0), Moments(1.0), 1)
        # Pollaczek and Khinchine for M/D/1, in service times.
        assert found.mean() - 1 == pytest.approx(load / (2 * (1 - load)), rel=0.08)

    def test_nobody_is_answered_faster_than_the_engine_runs(self) -> None:
        assert queued(arrivals(0.5, 1000, seed=0), Moments(1.0), 1).min() == pytest.approx(1.0)

    def test_those_who_arrive_while_the_engine_runs_wait_from_their_arrival_on(self) -> None:
        found = queued(np.array([0.0, 0.1, 0.2, 9.0]), Moments(1.0), 1)
        assert found == pytest.approx([1.0, 1.9, 2.8, 1.0])

    def test_those_who_wait_are_answered_together_by_the_largest_size_that_they_fill(self) -> None:
        moments = Moments(1.0, for_each=0.1)
        found = queued(np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), moments, 1, 2, 4)
        assert moments.sizes == [1, 4, 1]
        assert found == pytest.approx([1.1, 2.4, 2.3, 2.2, 2.1, 3.1])

    def test_batching_answers_more_than_one_by_one_could(self) -> None:
        arriving = arrivals(1.5, 5000, seed=2)
        one_by_one = queued(arriving, Moments(0.9, for_each=0.1), 1)
        together = queued(arriving, Moments(0.9, for_each=0.1), 1, 2, 4, 8)
        assert one_by_one[-100:].min() > 1000
        assert together.max() < 20

    def test_it_breaks_off_when_the_99th_percentile_must_miss_the_bound(self) -> None:
        arriving = arrivals(0.95, 10_000, seed=0)
        bound = 5.0
        whole = queued(arriving, Moments(1.0), 1)
        found = queued(arriving, Moments(1.0), 1, bound=bound)
        assert len(found) < len(whole) == 10_000
        assert (found > bound).sum() == 101
        assert np.quantile(whole, 0.99) > bound

    def test_it_goes_on_while_the_99th_percentile_can_still_meet_the_bound(self) -> None:
        arriving = arrivals(0.5, 10_000, seed=0)
        bound = float(np.quantile(queued(arriving, Moments(1.0), 1), 0.992))
        assert len(queued(arriving, Moments(1.0), 1, bound=bound)) == 10_000
