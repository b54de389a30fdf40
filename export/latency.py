"""Engines timed in turns: several in a process of their own each, or many small ones in one process."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .energy import counter_of, energy_of
from .engine import Array
from .engine_process import EngineProcess
from .gpu_state import device_state
from .measurement import (
    P50_SAMPLES,
    P99_SAMPLES,
    Comparison,
    DeviceState,
    Energy,
    Latency,
    NotMeasured,
    Ranked,
)
from .resampling import compared, half_width, latency_of, ranked
from .target import EngineFile, Target

WARM_UP_SECONDS = 0.2
"""First calls allocate and choose kernels, and an idle processor takes a while to raise its clock."""

MIN_SECONDS, MAX_SECONDS = 0.5, 3.0
"""An engine is timed until it has 1,000 samples and half a second of them, or three seconds, and 20 samples."""

ROUND_TURNS = 12
MIN_ROUNDS, MAX_ROUNDS = 2, 8
NARROW = 0.015
MORE_UNTIL_SECONDS = 60.0
"""A round is new processes and twelve turns in them. There are two rounds, and further ones until the interval of every
ratio is at most ±1.5 %, until there were eight, or a minute is over. The rule looks at the width alone and never at
the verdict, so looking often makes no false alarms (Chow and Robbins 1965). New processes, because where their memory
happens to lie is a part of the noise that one process would never show."""

PART_WARM_UP_SECONDS = 0.02
PART_SECONDS = 0.1
"""A small engine among many is timed until it has 1,000 samples or a tenth of a second of them, and 10 samples."""
PART_SAMPLES = 10
PART_TURNS = 10


@dataclass(frozen=True)
class Contestant:
    """An engine that is to be timed beside others, and what it is given at each batch size."""

    engine: EngineFile
    inputs_by_batch: Mapping[int, Mapping[str, Array]]
    longer_by: float = 0.0
    """Work that is added to each run, as a share of the engine's own p50: what the self-check has to find."""


@dataclass(frozen=True)
class InTurns:
    """What several engines showed that were timed in turns."""

    blocks: Mapping[int, tuple[list[NDArray[np.float64]], ...]]
    """By batch size, for each engine: seconds of the runs of each turn."""
    device_blocks: Mapping[int, tuple[list[NDArray[np.float64]], ...]]
    """The same by the device's own clock, in runs of their own; empty lists for engines on the CPU."""
    peak_memory_bytes: tuple[int | None, ...]
    """Of each engine's processes."""
    device_memory_bytes: tuple[int | None, ...]
    """Likewise of the GPU's memory; None on the CPU."""

    def device_latency(self, index: int) -> tuple[Latency, ...]:
        """Of one engine by the device's own clock, one a batch size; empty on the CPU."""
        return tuple(latency_of(batch, blocks[index]) for batch, blocks in self.device_blocks.items() if blocks[index])


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
    on_gpu = candidate.target.device == "cuda"
    before = device_state() if on_gpu else None
    both = in_turns([Contestant(each, inputs_by_batch) for each in (baseline, candidate)])
    after = device_state() if on_gpu else None
    states = None if before is None or after is None else (before, after)
    return Timing(
        comparisons=tuple(compared(batch, *blocks) for batch, blocks in both.blocks.items()),
        peak_memory_bytes=both.peak_memory_bytes[1],
        on_device=OnDevice(both.device_latency(1), both.device_memory_bytes[1], states) if on_gpu else None,
        energy=_energy(candidate, inputs_by_batch) if energy else None,
    )


def _energy(candidate: EngineFile, inputs_by_batch: Mapping[int, Mapping[str, Array]]) -> Energy | NotMeasured:
    counter = counter_of(candidate.target.device)
    if isinstance(counter, NotMeasured):
        return counter
    batch, inputs = next(iter(inputs_by_batch.items()))
    with _process(candidate) as process:
        process.bind(inputs)
        process.warm_up(WARM_UP_SECONDS)
        return energy_of(counter, process.run_for, batch)


def rank(files: Mapping[str, EngineFile], inputs: Mapping[str, Array]) -> tuple[Ranked, ...]:
    """Engines by their names, also of different runtimes, timed in turns on the same inputs (batch, …): fastest first.

    Raises ExportError when a process dies.
    """
    batch = len(next(iter(inputs.values())))
    found = in_turns([Contestant(file, {batch: inputs}) for file in files.values()])
    return ranked(batch, dict(zip(files, found.blocks[batch], strict=True)))


def in_turns(contestants: Sequence[Contestant]) -> InTurns:
    """Time engines in a process of their own each, at every batch size of the first one.

    Raises ExportError when a process dies.
    """
    host, device = _empty_blocks(contestants), _empty_blocks(contestants)
    plans: dict[int, _Plan] = {}
    peaks: list[list[int | None]] = []
    on_device: list[list[int | None]] = []
    unsure, begun = list(host), time.monotonic()
    for round_number in range(1, MAX_ROUNDS + 1):
        with ExitStack() as stack:
            processes = _started(stack, contestants)
            for batch in unsure:
                plans[batch] = _prepared(processes, contestants, batch, plans.get(batch))
                _take_turns(processes, plans[batch], host[batch], device[batch])
            peaks.append([process.peak_memory_bytes() for process in processes])
            on_device.append([process.device_memory_bytes() for process in processes])
        if round_number >= MIN_ROUNDS:
            unsure = [batch for batch in unsure if not _narrow(host[batch])]
            if not unsure or time.monotonic() - begun > MORE_UNTIL_SECONDS:
                break
    return InTurns(host, device, _highest(peaks), _highest(on_device))


def _empty_blocks(contestants: Sequence[Contestant]) -> dict[int, tuple[list[NDArray[np.float64]], ...]]:
    return {batch: tuple([] for _ in contestants) for batch in contestants[0].inputs_by_batch}


def _started(stack: ExitStack, contestants: Sequence[Contestant]) -> list[EngineProcess]:
    """All at once: each takes seconds to import its runtime."""

    def start(contestant: Contestant) -> EngineProcess:
        return stack.enter_context(_process(contestant.engine))

    with ThreadPoolExecutor(len(contestants)) as pool:
        return list(pool.map(start, contestants))


def _process(engine: EngineFile) -> EngineProcess:
    return EngineProcess(engine.target, engine.path)


@dataclass(frozen=True)
class _Plan:
    """How a round goes at one batch size; the same for all rounds."""

    turns: int
    counts: tuple[int, ...]
    """Runs in one turn, for each engine."""


def _prepared(
    processes: Sequence[EngineProcess], contestants: Sequence[Contestant], batch: int, plan: _Plan | None
) -> _Plan:
    """Hand over the inputs and warm up; the plan is made by the times of the first round."""
    wanted: list[int] = []
    for process, contestant in zip(processes, contestants, strict=True):
        process.bind(contestant.inputs_by_batch[batch])
        wanted.append(_samples_wanted(process.warm_up(WARM_UP_SECONDS)))
        if contestant.longer_by:
            process.lengthen(contestant.longer_by)
    turns = min(ROUND_TURNS, *(samples // MIN_ROUNDS for samples in wanted))
    return plan or _Plan(turns, tuple(math.ceil(samples / (MIN_ROUNDS * turns)) for samples in wanted))


def _take_turns(
    processes: Sequence[EngineProcess],
    plan: _Plan,
    host: tuple[list[NDArray[np.float64]], ...],
    device: tuple[list[NDArray[np.float64]], ...],
) -> None:
    for turn in range(plan.turns):
        # Who goes first changes, so that a steady drift of the machine favours nobody.
        for which in _order(len(processes), turn):
            host[which].append(processes[which].timed(plan.counts[which]))
            if processes[which].on_device:
                seconds = processes[which].device_timed(plan.counts[which])
                device[which].extend([] if seconds is None else [seconds])


def _order(count: int, turn: int) -> Sequence[int]:
    return range(count) if turn % 2 == 0 else range(count)[::-1]


def _narrow(blocks: tuple[list[NDArray[np.float64]], ...]) -> bool:
    """Whether all ratios to the first engine are known well enough."""
    first, *others = blocks
    return all(half_width(first, other) <= NARROW for other in others)


def _highest(rounds: Sequence[Sequence[int | None]]) -> tuple[int | None, ...]:
    """The most of each engine's rounds."""
    by_engine = zip(*rounds, strict=True)
    return tuple(max((each for each in found if each is not None), default=None) for found in by_engine)


def _samples_wanted(seconds_per_run: float) -> int:
    longest = math.ceil(MAX_SECONDS / seconds_per_run)
    shortest = math.ceil(MIN_SECONDS / seconds_per_run)
    return max(P50_SAMPLES, shortest, min(P99_SAMPLES, longest))


def medians_ms(target: Target, files: Sequence[Path], inputs: Sequence[Mapping[str, Array]]) -> list[float]:
    """p50 of each engine file on its inputs: all in one process and in turns, so that a drift favours none.

    Raises ExportError when the process dies.
    """
    with EngineProcess(target, *files) as process:
        counts: list[int] = []
        for number, values in enumerate(inputs):
            process.bind(values, number)
            per_run = process.warm_up(PART_WARM_UP_SECONDS, number)
            samples = max(PART_SAMPLES, min(P99_SAMPLES, math.ceil(PART_SECONDS / per_run)))
            counts.append(math.ceil(samples / PART_TURNS))
        blocks: list[list[NDArray[np.float64]]] = [[] for _ in files]
        for turn in range(PART_TURNS):
            for number in _order(len(files), turn):
                blocks[number].append(process.timed(counts[number], number))
    return [float(np.median(np.concatenate(each))) * 1e3 for each in blocks]
