"""Engines timed in turns: two in a process of their own each, or many small ones in one process."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .engine import Array
from .engine_process import EngineProcess
from .measurement import Comparison
from .resampling import compared
from .target import EngineFile, Target

WARM_UP_SECONDS = 0.2
"""First calls allocate and choose kernels, and an idle processor takes a while to raise its clock."""

SAMPLES = 1000
MIN_SECONDS, MAX_SECONDS = 0.5, 3.0
"""An engine is timed until it has 1,000 samples and half a second of them, or three seconds, and 10 samples."""

MIN_SAMPLES = 10

PART_WARM_UP_SECONDS = 0.02
PART_SECONDS = 0.1
"""A small engine among many is timed until it has 1,000 samples or a tenth of a second of them, and 10 samples."""

PART_TURNS = 10

NUM_BLOCKS = 40
"""Turns. Enough for a bootstrap over blocks, few enough that a block is longer than the switch between processes."""


@dataclass(frozen=True)
class Timing:
    """What the processes of a candidate and its baseline showed."""

    comparisons: tuple[Comparison, ...]
    """One a batch size."""
    peak_memory_bytes: int | None
    """Of the candidate's process."""


def compare(candidate: EngineFile, baseline: EngineFile, inputs_by_batch: Mapping[int, Mapping[str, Array]]) -> Timing:
    """Time the engine `candidate` beside `baseline`; with the same file for both it is an A/A run.

    Raises ExportError when a process dies.
    """
    with ExitStack() as stack:
        base, new = (stack.enter_context(EngineProcess(each.target, each.path)) for each in (baseline, candidate))
        comparisons: list[Comparison] = []
        for batch, inputs in inputs_by_batch.items():
            for process in (base, new):
                process.bind(inputs)
            comparisons.append(compared(batch, *_timed_in_turns((base, new))))
        return Timing(tuple(comparisons), new.peak_memory_bytes())


def _timed_in_turns(processes: tuple[EngineProcess, EngineProcess]) -> tuple[list[NDArray[np.float64]], ...]:
    wanted = [_samples_wanted(process.warm_up(WARM_UP_SECONDS)) for process in processes]
    num_blocks = min(NUM_BLOCKS, *wanted)
    counts = [math.ceil(samples / num_blocks) for samples in wanted]
    blocks: tuple[list[NDArray[np.float64]], ...] = ([], [])
    for turn in range(num_blocks):
        # Who goes first changes, so that a steady drift of the machine favours neither.
        for which in _order(turn):
            blocks[which].append(processes[which].timed(counts[which]))
    return blocks


def _order(turn: int) -> Sequence[int]:
    return (0, 1) if turn % 2 == 0 else (1, 0)


def medians_ms(target: Target, files: Sequence[Path], inputs: Sequence[Mapping[str, Array]]) -> list[float]:
    """p50 of each engine file on its inputs: all in one process and in turns, so that a drift favours none.

    Raises ExportError when the process dies.
    """
    with EngineProcess(target, *files) as process:
        counts: list[int] = []
        for number, values in enumerate(inputs):
            process.bind(values, number)
            per_run = process.warm_up(PART_WARM_UP_SECONDS, number)
            samples = max(MIN_SAMPLES, min(SAMPLES, math.ceil(PART_SECONDS / per_run)))
            counts.append(math.ceil(samples / PART_TURNS))
        blocks: list[list[NDArray[np.float64]]] = [[] for _ in files]
        for turn in range(PART_TURNS):
            for number in range(len(files)) if turn % 2 == 0 else reversed(range(len(files))):
                blocks[number].append(process.timed(counts[number], number))
    return [float(np.median(np.concatenate(each))) * 1e3 for each in blocks]


def _samples_wanted(seconds_per_run: float) -> int:
    longest = math.ceil(MAX_SECONDS / seconds_per_run)
    shortest = math.ceil(MIN_SECONDS / seconds_per_run)
    return max(MIN_SAMPLES, shortest, min(SAMPLES, longest))
