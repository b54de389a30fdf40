"""MLPerf's offline scenario: all samples are there at once, and what counts is how many are done in a second."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .engine import Array
from .engine_process import EngineProcess
from .latency import WARM_UP_SECONDS
from .measurement import Offline, OfflinePoint
from .resampling import Blocks, throughput_interval
from .scenarios import batch_sizes
from .target import EngineFile

TURNS = 10
SIZE_SECONDS = 1.0
"""At each batch size, engines are timed in ten turns of a tenth of a second, or of one run where that takes longer."""

FALLEN, FALLS = 0.9, 2
"""The sweep stops where throughput was below this share of the best so far twice in a row: once may be noise."""
KNEE = 0.9
"""Of the best throughput: what the smallest sufficient batch size has to reach."""


def measure_offline(file: EngineFile, inputs_of: Callable[[int], Mapping[str, Array]], max_batch: int) -> Offline:
    """Throughput at rising batch sizes, `inputs_of(batch)` being what the engine is given.

    The sizes take turns, so that a drift of the machine favours none. Raises ExportError where a size cannot be run.
    """
    with EngineProcess(file.target, file.path) as process:
        counts = _counts(process, inputs_of, batch_sizes(max_batch))
        blocks: dict[int, list[Array]] = {size: [] for size in counts}
        for turn in range(TURNS):
            for size in list(counts) if turn % 2 == 0 else reversed(counts):
                process.bind(inputs_of(size))
                blocks[size].append(process.timed(counts[size]))
    return summary(blocks)


def _counts(
    process: EngineProcess, inputs_of: Callable[[int], Mapping[str, Array]], sizes: Sequence[int]
) -> dict[int, int]:
    """How many runs a turn has at each size, up to the one where throughput falls."""
    counts: dict[int, int] = {}
    best, falls = 0.0, 0
    for size in sizes:
        process.bind(inputs_of(size))
        seconds = process.warm_up(WARM_UP_SECONDS)
        counts[size] = math.ceil(SIZE_SECONDS / TURNS / seconds)
        falls = falls + 1 if size / seconds < FALLEN * best else 0
        best = max(best, size / seconds)
        if falls == FALLS:
            break
    return counts


def summary(blocks_by_batch: Mapping[int, Blocks]) -> Offline:
    """The best batch size and the knee, of the seconds of runs at each size."""
    sweep = tuple(
        OfflinePoint(
            batch=batch,
            throughput=batch / float(np.concatenate(blocks).mean()),
            interval=throughput_interval(batch, blocks),
        )
        for batch, blocks in sorted(blocks_by_batch.items())
    )
    best = max(sweep, key=lambda point: point.throughput)
    knee = next(point.batch for point in sweep if point.throughput >= KNEE * best.throughput)
    return Offline(best=best, sweep=sweep, knee=knee)
