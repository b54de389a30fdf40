"""An engine whose runs take longer by a known share: what a comparison has to find, to show that it finds things."""

from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from .engine import Engine

CALIBRATION_RUNS = 101


def loops_for(engine: Engine, share: float) -> int:
    """How many turns of an empty loop last for `share` of the engine's p50, both timed in alternation.

    Counted work and no waiting by the clock, so that what slows the machine slows it as well.
    """
    trial = 1000
    runs, loops = np.empty(CALIBRATION_RUNS), np.empty(CALIBRATION_RUNS)
    for index in range(CALIBRATION_RUNS):
        runs[index] = engine.timed(1)[0]
        loops[index] = looped(trial)
    return round(share * float(np.median(runs)) / (float(np.median(loops)) / trial))


def looped(count: int) -> float:
    """Seconds that so many turns of an empty loop take."""
    begun = perf_counter()
    for _ in range(count):
        pass
    return perf_counter() - begun


def timed_with_loops(engine: Engine, count: int, loops: int) -> NDArray[np.float64]:
    """Seconds of each of `count` runs, with so many turns of an empty loop behind each."""
    return np.array([engine.timed(1)[0] + looped(loops) for _ in range(count)])
