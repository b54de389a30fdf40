"""How long the GPU itself works on a run: pairs of CUDA events around it, and nothing of what the host does."""

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

TRIAL_RUNS = 3
CYCLES_PER_SECOND = 2e9
"""Above every GPU's clock at present, so that the wait lasts at least as long as was meant."""

MAX_HEAD_START_SECONDS = 0.05
MARGIN = 1.5


def event_timed(enqueue: Callable[[], object], stream: "torch.cuda.Stream", count: int) -> NDArray[np.float64]:
    """Seconds of each of `count` runs that `enqueue` puts on `stream` without waiting for them.

    The GPU first waits as long as the host takes to enqueue the runs, at most 50 ms: without that head start, a small
    engine's GPU is idle between two launches, and the events would time the host. What is longer than that is enqueued
    in several parts.
    """
    import torch

    def enqueued(number: int) -> float:
        begun = perf_counter()
        for _ in range(number):
            enqueue()
        return perf_counter() - begun

    per_run = enqueued(TRIAL_RUNS) / TRIAL_RUNS
    stream.synchronize()
    at_once = max(1, min(count, int(MAX_HEAD_START_SECONDS / (MARGIN * per_run))))
    seconds: list[float] = []
    while len(seconds) < count:
        part = min(at_once, count - len(seconds))
        with torch.cuda.stream(stream):
            # The only way that torch has to keep a stream busy for a while.
            torch.cuda._sleep(int(part * per_run * MARGIN * CYCLES_PER_SECOND))  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        pairs = [_between_events(enqueue, stream) for _ in range(part)]
        stream.synchronize()
        seconds += [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
    return np.array(seconds)


def _between_events(
    enqueue: Callable[[], object], stream: "torch.cuda.Stream"
) -> "tuple[torch.cuda.Event, torch.cuda.Event]":
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record(stream)
    enqueue()
    end.record(stream)
    return begin, end
