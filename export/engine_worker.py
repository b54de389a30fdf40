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
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import JsonValue

from ..pipeline.errors import PotstillError
from .engine import Array, Engine
from .lengthened import loops_for, timed_with_loops
from .server_load import WallClock, arrivals, latencies
from .target import targets

RUNS_BETWEEN_LOOKS = 10
"""At the clock, while an engine runs for a while."""


@dataclass
class _Held:
    """An open engine, and the work that is added to each of its timed runs."""

    engine: Engine
    loops: int = 0


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
            engines = [_Held(stack.enter_context(opens(Path(file)))) for file in files]
            answer(ready=True)
            for line in sys.stdin:
                answer(**_obey(engines, json.loads(line)))
    except PotstillError as error:
        answer(error=str(error))


def _obey(engines: Sequence[_Held], command: dict[str, Any]) -> dict[str, JsonValue]:
    held = engines[int(command.get("engine", 0))]
    engine = held.engine
    match command["do"]:
        case "bind":
            engine.bind(_arrays(command["inputs"]))
            return {}
        case "warm_up":
            return {"seconds_per_run": _warm_up(engine, command["seconds"])}
        case "time":
            # The other engine ran before: one untimed run brings the caches back.
            engine.timed(1)
            count = command["count"]
            seconds = timed_with_loops(engine, count, held.loops) if held.loops else engine.timed(count)
            return {"seconds": seconds.tolist()}
        case "device_time":
            engine.timed(1)
            seconds = engine.device_timed(command["count"])
            return {"seconds": None if seconds is None else seconds.tolist()}
        case "run_for":
            return {"runs": _run_for(engine, command["seconds"])}
        case "memory":
            return {"peak_bytes": peak_memory_bytes(), "device_bytes": engine.device_memory_bytes()}
        case "lengthen":
            held.loops = loops_for(engine, command["share"])
            return {}
        case "serve":
            np.save(command["into"], _served(engines, command), allow_pickle=False)
            return {}
        case "describe":
            return {"description": engine.describe().model_dump(mode="json")}
        case "examine":
            return {"outputs": {name: _facts(array) for name, array in engine.run(_arrays(command["inputs"])).items()}}
        case unknown:
            raise AssertionError(f"unknown command {unknown}")


def _arrays(files: dict[str, str]) -> dict[str, Array]:
    return {name: np.load(path, allow_pickle=False) for name, path in files.items()}


def _served(engines: Sequence[_Held], command: dict[str, Any]) -> Array:
    """Latencies of queries that arrive by chance; the engines are the same one, each bound to its batch size."""
    by_size = {size: held.engine for size, held in zip(command["sizes"], engines, strict=True)}
    for engine in by_size.values():
        engine.timed(1)
    return latencies(
        arrivals(command["rate"], command["count"], command["seed"]),
        lambda size: by_size[size].timed(1),
        tuple(by_size),
        bound=command["bound"],
        clock=WallClock(),
    )


def _facts(output: Array) -> JsonValue:
    countable = output.dtype.kind not in "OSU"  # strings have neither NaN nor infinity
    return {"shape": list(output.shape), "finite": not countable or bool(np.isfinite(output).all())}


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
