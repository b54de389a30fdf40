"""A process that runs engines, mostly one, and nothing else; it takes commands as JSON lines and answers each with one.

It is started by `engine_process.py`, and imports no torch: its peak memory is that of the engine.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import JsonValue

from ..pipeline.errors import PotstillError
from .engine import Engine
from .target import targets

RUNS_BETWEEN_LOOKS = 10
"""At the clock, while an engine runs for a while."""


def main(target_json: str, *files: str) -> None:
    """Serve commands from standard input until it ends."""
    target: dict[str, JsonValue] = json.loads(target_json)
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Ctrl-C is for the parent, whose end closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(**values: JsonValue) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        opens = targets()[str(target["runtime"])].model_validate(target).open
        with ExitStack() as stack:
            engines = [stack.enter_context(opens(Path(file))) for file in files]
            answer(ready=True)
            for line in sys.stdin:
                answer(**_obey(engines, json.loads(line)))
    except PotstillError as error:
        answer(error=str(error))


def _obey(engines: Sequence[Engine], command: dict[str, Any]) -> dict[str, JsonValue]:
    engine = engines[int(command.get("engine", 0))]
    match command["do"]:
        case "bind":
            engine.bind({name: np.load(path, allow_pickle=False) for name, path in command["inputs"].items()})
            return {}
        case "warm_up":
            return {"seconds_per_run": _warm_up(engine, command["seconds"])}
        case "time":
            # The other engine ran before: one untimed run brings the caches back.
            engine.timed(1)
            return {"seconds": engine.timed(command["count"]).tolist()}
        case "device_time":
            engine.timed(1)
            seconds = engine.device_timed(command["count"])
            return {"seconds": None if seconds is None else seconds.tolist()}
        case "run_for":
            return {"runs": _run_for(engine, command["seconds"])}
        case "memory":
            return {"peak_bytes": peak_memory_bytes(), "device_bytes": engine.device_memory_bytes()}
        case unknown:
            raise AssertionError(f"unknown command {unknown}")


def _warm_up(engine: Engine, seconds: float) -> float:
    """Run for at least `seconds`; the median duration of the later half of the runs."""
    durations: list[float] = []
    end = perf_counter() + seconds
    while perf_counter() < end or len(durations) < 3:
        durations.extend(engine.timed(1).tolist())
    return float(np.median(durations[len(durations) // 2 :]))


def _run_for(engine: Engine, seconds: float) -> int:
    runs, end = 0, perf_counter() + seconds
    while perf_counter() < end:
        engine.timed(RUNS_BETWEEN_LOOKS)
        runs += RUNS_BETWEEN_LOOKS
    return runs


def peak_memory_bytes() -> int | None:
    """The most memory that this process has held, as far as the system tells."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a child's ru_maxrss starts with what its parent held when it was started.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if sys.platform == "darwin" else None
