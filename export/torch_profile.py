"""Where a PyTorch program spends its time, operator by operator, by PyTorch's own profiler."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..pipeline.errors import ExportError
from .measurement import OperatorTime

PROFILED_RUNS = 30
PROFILE_WARM_UP = 5

RUN = "potstill run"
MODULE = "potstill module "
"""The names of the ranges that the profile shows beside PyTorch's own."""

_Row = tuple[str, str, float]
"""Layer, operator, milliseconds."""


def profiled(step: Callable[[], object], module: nn.Module | None, *, device: str) -> tuple[OperatorTime, ...]:
    """Medians over the runs of one profile; the layer is the module whose forward called the operator.

    On a GPU the times are those of the kernels that an operator started. Raises ExportError when the runs differ.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with _marked(module):
        for _ in range(PROFILE_WARM_UP):
            step()
        with _no_words(), profile(activities=activities) as profiler:
            for _ in range(PROFILED_RUNS):
                with record_function(RUN):
                    step()
                if device == "cuda":
                    torch.cuda.synchronize()
    events = cast(list[Any], profiler.events())
    if module is None and device == "cuda":
        runs = _kernels(events)
    else:
        ranges = [event for event in events if event.name == RUN and event.device_type.name == "CPU"]
        runs = [list(_rows(event, "", device)) for event in ranges]
    if len({tuple((layer, operator) for layer, operator, _ in rows) for rows in runs}) != 1:
        raise ExportError("the model calls other operators on every run, so that no time can be given for each")
    milliseconds = np.median([[ms for *_, ms in rows] for rows in runs], axis=0)
    return tuple(
        OperatorTime(layer=layer, operator=operator, ms=float(ms))
        for (layer, operator, _), ms in zip(runs[0], milliseconds, strict=True)
    )


@contextmanager
def _marked(module: nn.Module | None) -> Generator[None]:
    """Within the block every part of a module leaves its path in the profile."""
    parts = cast(Iterable[tuple[str, Any]], () if module is None else module.named_modules())
    handles: list[Any] = []
    for path, part in parts:
        # A module may be called within itself.
        ranges: list[Any] = []
        handles += [
            part.register_forward_pre_hook(_enters(ranges, path)),
            part.register_forward_hook(_leaves(ranges), always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _no_words() -> Generator[None]:
    """Within the block nothing reaches standard error, where the profiler's C++ code writes of its start and end."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _enters(ranges: list[Any], path: str) -> Callable[..., None]:
    def enter(*_: object) -> None:
        ranges.append(record_function(MODULE + path))
        ranges[-1].__enter__()

    return enter


def _leaves(ranges: list[Any]) -> Callable[..., None]:
    def leave(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    return leave


def _rows(event: Any, layer: str, device: str) -> Iterator[_Row]:
    """The operators that a range calls itself, and those of the ranges within it, in the order they run."""
    for child in sorted(event.cpu_children, key=lambda child: child.time_range.start):
        if child.name.startswith(MODULE):
            yield from _rows(child, child.name.removeprefix(MODULE), device)
            continue
        microseconds = child.device_time_total if device == "cuda" else child.cpu_time_total
        if device == "cpu" or microseconds > 0:
            yield layer, str(child.name).removeprefix("aten::"), microseconds / 1e3


def _kernels(events: Sequence[Any]) -> list[list[_Row]]:
    """What ran on the GPU in each run, in order; compiled programs start kernels without PyTorch's operators."""
    on_device = [each for each in events if each.device_type.name == "CUDA" and each.name != RUN]
    on_device.sort(key=lambda each: each.time_range.start)
    rows = [("", str(each.name), each.time_range.elapsed_us() / 1e3) for each in on_device]
    count, rest = divmod(len(rows), PROFILED_RUNS)
    if rest or not count:
        raise ExportError(
            f"{PROFILED_RUNS} runs left {len(rows)} kernels in the profile, so that none can be told apart"
        )
    return [rows[start : start + count] for start in range(0, len(rows), count)]
