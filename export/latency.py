"""Engines timed in turns: two in a process of their own each, or many small ones in one process."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .energy import counter_of, energy_of
from .engine import Array
from .engine_process import EngineProcess
from .gpu_state import device_state
from .measurement import Comparison, DeviceState, Energy, Latency, NotMeasured
from .resampling import compared, latency_of
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
class OnDevice:
    """What a candidate's GPU showed."""

    latency: tuple[Latency, ...]
    """One a batch size, in the same turns as the host's."""
    memory_bytes: int | None
    states: tuple[DeviceState, DeviceState] | None
    """Before and after all timing; None without NVML."""


@dataclass(frozen=True)
class Timing:
    """What the processes of a candidate and its baseline showed."""

    comparisons: tuple[Comparison, ...]
    """One a batch size."""
    peak_memory_bytes: int | None
    """Of the candidate's process."""
    on_device: OnDevice | None
    """None on the CPU."""
    energy: Energy | NotMeasured | None
    """None unless it was asked for."""


def compare(
    candidate: EngineFile,
    baseline: EngineFile,
    inputs_by_batch: Mapping[int, Mapping[str, Array]],
    *,
    energy: bool = False,
) -> Timing:
    """Time the engine `candidate` beside `baseline`; with the same file for both it is an A/A run.

    With `energy`, the candidate's is measured as well, at the first batch size. Raises ExportError when a process dies.
    """
    with ExitStack() as stack:
        base, new = (stack.enter_context(EngineProcess(each.target, each.path)) for each in (baseline, candidate))
        on_gpu = candidate.target.device == "cuda"
        before = device_state() if on_gpu else None
        comparisons: list[Comparison] = []
        device: list[Latency] = []
        for batch, inputs in inputs_by_batch.items():
            for process in (base, new):
                process.bind(inputs)
            of_base, of_new, of_device = _timed_in_turns((base, new), on_gpu=on_gpu)
            comparisons.append(compared(batch, of_base, of_new))
            if of_device:
                device.append(latency_of(batch, of_device))
        after = device_state() if on_gpu else None
        states = None if before is None or after is None else (before, after)
        return Timing(
            comparisons=tuple(comparisons),
            peak_memory_bytes=new.peak_memory_bytes(),
            on_device=OnDevice(tuple(device), new.device_memory_bytes(), states) if on_gpu else None,
            energy=_energy(new, candidate.target, inputs_by_batch) if energy else None,
        )


def _energy(
    process: EngineProcess, target: Target, inputs_by_batch: Mapping[int, Mapping[str, Array]]
) -> Energy | NotMeasured:
    counter = counter_of(target.device)
    batch, inputs = next(iter(inputs_by_batch.items()))
    if not isinstance(counter, NotMeasured):
        process.bind(inputs)
    return energy_of(counter, process.run_for, batch)


def _timed_in_turns(
    processes: tuple[EngineProcess, EngineProcess], *, on_gpu: bool
) -> tuple[list[NDArray[np.float64]], ...]:
    """Blocks of the baseline, of the candidate, and of the candidate by its GPU's clock where it has one."""
    wanted = [_samples_wanted(process.warm_up(WARM_UP_SECONDS)) for process in processes]
    num_blocks = min(NUM_BLOCKS, *wanted)
    counts = [math.ceil(samples / num_blocks) for samples in wanted]
    blocks: tuple[list[NDArray[np.float64]], ...] = ([], [], [])
    for turn in range(num_blocks):
        # Who goes first changes, so that a steady drift of the machine favours neither.
        for which in _order(turn):
            blocks[which].append(processes[which].timed(counts[which]))
        seconds = processes[1].device_timed(counts[1]) if on_gpu else None
        if seconds is not None:
            blocks[2].append(seconds)
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
