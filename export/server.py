"""MLPerf's server scenario: the highest rate of queries at which the 99th percentile of their latency meets a bound."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .engine import Array
from .engine_process import EngineProcess
from .latency import WARM_UP_SECONDS
from .measurement import P99_SAMPLES, Server, ServerTrial
from .resampling import percentile_intervals_ms
from .scenarios import ServerScenario, batch_sizes
from .server_load import arrivals
from .target import EngineFile

HEADROOM = 1.2
"""The search begins below this multiple of the rate at which the engine would never rest: that was measured, too."""
RESOLUTION = 0.05
"""The search ends where the highest rate that met the bound and the lowest that did not are within 5 %."""
LOWEST = 1 / 16
"""Of that rate: where the bound is still missed, the engine itself is too slow for it, or the machine too busy."""
LOWERED = 0.95
MAX_REPLAYS = 5
"""A rate that does not hold is lowered by 5 % and replayed again."""
NUM_BLOCKS = 40
"""Of queries that followed each other, for the interval of their 99th percentile."""


class Trial(Protocol):
    """What sends queries to an engine."""

    def __call__(self, rate: float, seconds: float, seed: int) -> ServerTrial:
        """At a rate, for so many seconds and at least 1,000 of them, their arrivals drawn from a seed."""
        ...


def measure_server(
    file: EngineFile, inputs_of: Callable[[int], Mapping[str, Array]], scenario: ServerScenario
) -> Server:
    """Search the rate, `inputs_of(batch)` being what the engine is given. Raises ExportError when the process dies."""
    sizes = batch_sizes(scenario.max_batch)
    with EngineProcess(file.target, *(file.path for _ in sizes)) as process:
        capacity = 0.0
        for number, size in enumerate(sizes):
            process.bind(inputs_of(size), number)
            capacity = max(capacity, size / process.warm_up(WARM_UP_SECONDS, number))

        def trial(rate: float, seconds: float, seed: int) -> ServerTrial:
            count = queries_of(rate, seconds)
            found = process.serve(sizes, rate=rate, count=count, seed=seed, bound=scenario.p99_ms / 1e3)
            return trial_of(rate, arrivals(rate, count, seed), found, scenario.p99_ms)

        return searched(trial, capacity, scenario)


def queries_of(rate: float, seconds: float) -> int:
    """At least as many as a 99th percentile takes."""
    return max(P99_SAMPLES, math.ceil(rate * seconds))


def trial_of(rate: float, arriving: NDArray[np.float64], found: NDArray[np.float64], bound_ms: float) -> ServerTrial:
    """A trial by the arrivals that were drawn and the latencies of the queries that were answered, in seconds."""
    complete = len(found) == len(arriving)
    p99_ms = float(np.quantile(found, 0.99)) * 1e3 if complete else None
    return ServerTrial(
        rate=rate,
        queries=len(found),
        seconds=float(arriving[len(found) - 1] + found[-1]),
        p50_ms=float(np.median(found)) * 1e3,
        p99_ms=p99_ms,
        p99_interval=percentile_intervals_ms(np.array_split(found, NUM_BLOCKS))[2] if complete else None,
        met=p99_ms is not None and p99_ms <= bound_ms,
    )


def searched(trial: Trial, capacity: float, scenario: ServerScenario) -> Server:
    """Bisection over rates up to about `capacity` queries a second, then replays of what was found.

    All trials of the search see the same row of chances, so that only the rate tells them apart; replays see others.
    """
    trials: list[ServerTrial] = []
    low, high = 0.0, HEADROOM * capacity
    while high - low > RESOLUTION * high and high > LOWEST * capacity:
        rate = (low + high) / 2
        trials.append(trial(rate, scenario.seconds, seed=0))
        low, high = (rate, high) if trials[-1].met else (low, rate)
    replays = _replays(trial, low, scenario) if low else ()
    return Server(
        bound_ms=scenario.p99_ms,
        max_batch=scenario.max_batch,
        best=replays[-1] if replays and replays[-1].met else None,
        trials=tuple(trials),
        replays=replays,
    )


def _replays(trial: Trial, rate: float, scenario: ServerScenario) -> tuple[ServerTrial, ...]:
    """At the rate and below it, until one holds."""
    replays: list[ServerTrial] = []
    for number in range(MAX_REPLAYS):
        replays.append(trial(rate * LOWERED**number, scenario.replay_seconds, seed=1 + number))
        if replays[-1].met:
            break
    return tuple(replays)
