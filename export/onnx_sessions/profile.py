"""The runtime's own profile of a session, operator by operator."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engine import Array
from ..measurement import OperatorTime
from .session import CPU, SessionSettings, loaded, opened

PROFILED_RUNS = 50
PROFILE_WARM_UP = 5

KERNEL = "_kernel_time"
"""What ONNX Runtime's profile appends to a node's name."""


def operator_times(
    file: Path, inputs: Mapping[str, Array], settings: SessionSettings = CPU
) -> tuple[OperatorTime, ...]:
    """Every operator of the optimised graph with the median time of its calls, in the order they run.

    The times are the host's: on a GPU they hold its work only where every launch waits for it.
    """
    from ..origins import Origins

    with TemporaryDirectory() as folder:
        session = opened(file, settings, profile=Path(folder) / "profile")
        for _ in range(PROFILE_WARM_UP + PROFILED_RUNS):
            session.run(None, dict(inputs))
        calls = _calls(json.loads(Path(session.end_profiling()).read_bytes()))
    origins = Origins(loaded(file).graph)
    return tuple(
        OperatorTime(
            layer=origins.layer_of(name, operator), operator=operator, ms=float(np.median(each[PROFILE_WARM_UP:]))
        )
        for (name, operator), each in calls.items()
    )


def _calls(events: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every call, by the node's name and operator."""
    calls: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(KERNEL):
            key = (name.removesuffix(KERNEL), str(event["args"]["op_name"]))
            calls.setdefault(key, []).append(event["dur"] / 1e3)
    return calls
