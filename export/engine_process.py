"""The parent's side of `engine_worker.py`: an engine in a process of its own, or many small ones in one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from ..pipeline.errors import ExportError
from .engine import Array, EngineDescription
from .target import Target

# The worker runs exactly this code, whether it is installed or a checkout: `potstill` is the folder above this one.
_BOOTSTRAP = """
import importlib, sys, types
root, module, *arguments = sys.argv[1:]
potstill = types.ModuleType("potstill")
potstill.__path__ = [root]
sys.modules["potstill"] = potstill
importlib.import_module(module).main(*arguments)
"""


def python_running(module: str, *arguments: str) -> list[str]:
    """The command that calls `main` of one of our modules with the arguments, in a process of its own."""
    root = Path(__file__).parent.parent
    # -P: a file in the current folder must not be taken for a library.
    return [sys.executable, "-P", "-c", _BOOTSTRAP, str(root), module, *arguments]


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TBB_NUM_THREADS")


@dataclass(frozen=True)
class OutputFacts:
    """What can be said of an output without knowing what it means."""

    shape: tuple[int, ...]
    finite: bool
    """Whether it holds neither NaN nor infinity."""


class EngineProcess:
    """One process, opened by `with`; an ExportError tells of its death and its last words.

    It holds one engine, or several that are called by their place among the files.
    """

    def __init__(self, target: Target, file: Path, *others: Path) -> None:
        self._target = target
        self._file = file
        self._files = (file, *others)
        self._process: subprocess.Popen[str] | None = None
        self._scratch: TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._scratch = TemporaryDirectory(prefix="potstill-")
        files = (str(file.absolute()) for file in self._files)
        with self._stderr_file.open("w") as stderr:
            self._process = subprocess.Popen(
                python_running(f"{__package__}.engine_worker", self._target.model_dump_json(), *files),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(self._target.threads)),
            )
        try:
            self._answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        self._stop()

    @property
    def process_id(self) -> int:
        """Of the running worker."""
        return self._running.pid

    @property
    def on_device(self) -> bool:
        """Whether the target's device is another one than the CPU, and may have a clock of its own."""
        return self._target.device != "cpu"

    def bind(self, inputs: Mapping[str, Array], engine: int = 0) -> None:
        """Hand over the inputs of all later runs."""
        self._ask(do="bind", engine=engine, inputs=self._saved(inputs))

    def warm_up(self, seconds: float, engine: int = 0) -> float:
        """Run untimed for `seconds`; returns roughly how long one run takes, in seconds."""
        return float(self._ask(do="warm_up", engine=engine, seconds=seconds)["seconds_per_run"])

    def timed(self, count: int, engine: int = 0) -> NDArray[np.float64]:
        """Seconds of each of `count` runs."""
        return np.array(self._ask(do="time", engine=engine, count=count)["seconds"])

    def run_for(self, seconds: float, engine: int = 0) -> int:
        """Run without a pause for `seconds`; returns how often."""
        return int(self._ask(do="run_for", engine=engine, seconds=seconds)["runs"])

    def device_timed(self, count: int, engine: int = 0) -> NDArray[np.float64] | None:
        """Seconds of each of `count` runs by the device's own clock; None on the CPU."""
        seconds = self._ask(do="device_time", engine=engine, count=count)["seconds"]
        return None if seconds is None else np.array(seconds)

    def device_memory_bytes(self, engine: int = 0) -> int | None:
        """What an engine holds of the GPU's memory; None on the CPU."""
        return cast(int | None, self._ask(do="memory", engine=engine)["device_bytes"])

    def peak_memory_bytes(self) -> int | None:
        """Of the whole process so far; None where the system does not tell."""
        return cast(int | None, self._ask(do="memory")["peak_bytes"])

    def lengthen(self, share: float, engine: int = 0) -> None:
        """Make all later runs of `timed` longer, by work that takes `share` of the engine's p50."""
        self._ask(do="lengthen", engine=engine, share=share)

    def serve(self, sizes: Sequence[int], *, rate: float, count: int, seed: int, bound: float) -> NDArray[np.float64]:
        """Seconds from arrival to answer of `count` queries that arrive by chance, `rate` a second on average.

        The process holds one engine for each of the batch sizes, bound to it. Fewer latencies come back where the 99th
        percentile could no longer meet `bound` seconds.
        """
        into = self._folder / "latencies.npy"
        self._ask(do="serve", sizes=list(sizes), rate=rate, count=count, seed=seed, bound=bound, into=str(into))
        return cast(NDArray[np.float64], np.load(into, allow_pickle=False))

    def describe(self) -> EngineDescription:
        """What the engine takes and gives. It may open the file a second time, which its peak memory then shows."""
        return EngineDescription.model_validate(self._ask(do="describe")["description"])

    def examine(self, inputs: Mapping[str, Array]) -> dict[str, "OutputFacts"]:
        """Run once; what came out, by name."""
        outputs = self._ask(do="examine", inputs=self._saved(inputs))["outputs"]
        return {name: OutputFacts(tuple(facts["shape"]), facts["finite"]) for name, facts in outputs.items()}

    def _saved(self, inputs: Mapping[str, Array]) -> dict[str, str]:
        files: dict[str, str] = {}
        for position, (name, array) in enumerate(inputs.items()):
            path = self._folder / f"input-{position}.npy"
            np.save(path, array, allow_pickle=False)
            files[name] = str(path)
        return files

    def _ask(self, **command: Any) -> dict[str, Any]:
        # A worker that died cannot be written to; the answer that is missing says more.
        with suppress(BrokenPipeError):
            stdin = cast(IO[str], self._running.stdin)
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = cast(IO[str], self._running.stdout).readline()
        if not line:
            code = self._running.wait()
            words = self._stderr_file.read_text(errors="replace").strip().splitlines()[-12:]
            last_words = "\n".join(f"  {word}" for word in words) or "  nothing"
            raise ExportError(
                f"the process that ran {self._file} ended with {_ending(code)}; its last words:\n{last_words}"
            )
        answer = cast(dict[str, Any], json.loads(line))
        if "error" in answer:
            raise ExportError(answer["error"])
        return answer

    def _stop(self) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError):
                cast(IO[str], self._process.stdin).close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            cast(IO[str], self._process.stdout).close()
        if self._scratch is not None:
            self._scratch.cleanup()

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None  # inside the with block
        return self._process

    @property
    def _folder(self) -> Path:
        assert self._scratch is not None  # inside the with block
        return Path(self._scratch.name)

    @property
    def _stderr_file(self) -> Path:
        return self._folder / "stderr.txt"


def _ending(code: int) -> str:
    return f"signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0 else f"exit code {code}"
