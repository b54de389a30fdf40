"""The server scenario's load: queries arrive by chance, and one engine answers them in the order of their arrival.

It runs in the engine's own process, so that no query waits for a message between processes, and in one thread: all
arrivals are drawn beforehand, so nobody has to notice them while the engine runs. A latency counts from the moment that
was drawn, however late the engine was free: queries that wait are not forgotten ("coordinated omission").
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SPIN_SECONDS = 0.0005
"""A sleeping process wakes up late, so the last half a millisecond before an arrival is not slept."""

LATE_SHARE = 0.01
"""Of all queries that may miss the bound of a 99th percentile."""


class Clock(Protocol):
    """Tells the time and waits, in seconds."""

    def now(self) -> float:
        """Since some moment."""
        ...

    def wait_until(self, moment: float) -> None:
        """Return at once where the moment is over."""
        ...


class WallClock:
    """Sleeps, and spins for the last bit."""

    def now(self) -> float:
        """The host's most precise clock."""
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        """Sleep until shortly before the moment, then look at the clock until it comes."""
        while (left := moment - time.perf_counter()) > 0:
            if left > SPIN_SECONDS:
                time.sleep(left - SPIN_SECONDS)


def arrivals(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Seconds at which queries arrive, `rate` a second on average: a Poisson process from a seed."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size=count))


def latencies(
    arriving: NDArray[np.float64],
    answer: Callable[[int], object],
    sizes: Sequence[int],
    *,
    bound: float,
    clock: Clock,
) -> NDArray[np.float64]:
    """Seconds from each query's arrival to its answer, by `answer(size)`, which answers so many queries at once.

    `sizes` are those that it can answer, rising from 1; taken is the largest one for which enough queries wait, at once
    and without waiting for more. Broken off, with those answered so far, as soon as so many have waited longer than
    `bound` seconds that the 99th percentile of all must miss it.
    """
    assert sizes[0] == 1
    found = np.empty(len(arriving))
    allowed = LATE_SHARE * len(arriving) + 1
    late, done = 0, 0
    start = clock.now()
    while done < len(arriving) and late < allowed:
        clock.wait_until(start + arriving[done])
        waiting = int(np.searchsorted(arriving, clock.now() - start, side="right")) - done
        size = max(each for each in sizes if each <= max(1, waiting))
        answer(size)
        found[done : done + size] = clock.now() - start - arriving[done : done + size]
        late += int((found[done : done + size] > bound).sum())
        done += size
    return found[:done]
