"""Our p50 of an ONNX file beside that of ONNX Runtime in a plain loop, in a process without our code.

    python -m benchmarks.tight_loop [model.onnx] [--rounds 10]

From the repository's root. Without a file, on three of our own: small, of the size of a ResNet-20 for CIFAR, larger.
In each round, three new processes take turns: an engine process of ours, a plain loop over `run_with_iobinding` (what
ours does) and one over `run` with a dict of arrays. The ratio is the median over turns of both medians of the turn,
with its 95 % interval by bootstrap; within 3 % is asked of the first. It prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from potstill.export.engine_process import EngineProcess
from potstill.export.machine import machine_facts
from potstill.export.random_inputs import random_inputs, shapes_of
from potstill.export.resampling import compared
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.self_check import convolutions

TURNS = 12
BLOCK_SECONDS = 0.02
ASKED = 0.03
OWN = {"4 convolutions of 16 channels": (4, 16), "20 of 32": (20, 32), "30 of 64": (30, 64)}

Blocks = dict[str, list[NDArray[np.float64]]]


@contextmanager
def plain(file: Path, array: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """The other script, warmed up."""
    command = [sys.executable, str(Path(__file__).with_name("plain_loop.py")), str(file), str(array), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def seconds_of(process: "subprocess.Popen[str]", count: int) -> NDArray[np.float64]:
    """So many runs of the plain loop, after an untimed one, as ours has it."""
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.write(f"{count + 1}\n")
    process.stdin.flush()
    return np.array(json.loads(process.stdout.readline())[1:])


def one_round(file: Path, scratch: Path, blocks: Blocks) -> None:
    """Three new processes that take turns."""
    with ExitStack() as stack:
        ours = stack.enter_context(EngineProcess(OnnxRuntimeTarget(), file))
        description = ours.describe()
        inputs = random_inputs(description, shapes_of(str(file), description, batch=None, given={}))
        (array,) = inputs.values()
        np.save(scratch / "input.npy", array)
        ours.bind(inputs)
        count = max(3, int(BLOCK_SECONDS / ours.warm_up(0.2)))
        loops = {how: stack.enter_context(plain(file, scratch / "input.npy", how)) for how in ("binding", "run")}
        for turn in range(TURNS):
            for name in ("ours", "binding", "run")[:: 1 if turn % 2 == 0 else -1]:
                blocks[name].append(ours.timed(count) if name == "ours" else seconds_of(loops[name], count))


def row(name: str, file: Path, rounds: int) -> str:
    """A line of the table."""
    blocks: Blocks = {"ours": [], "binding": [], "run": []}
    with TemporaryDirectory() as scratch:
        for _ in range(rounds):
            one_round(file, Path(scratch), blocks)
    cells = [name, f"{np.median(np.concatenate(blocks['ours'])) * 1e3:.4f}"]
    for how in ("binding", "run"):
        beside = compared(1, blocks["ours"], blocks[how])  # above 1: the plain loop is faster
        cells.append(f"{beside.ratio:.3f} ({beside.interval.low:.3f} to {beside.interval.high:.3f})")
    within = abs(compared(1, blocks["ours"], blocks["binding"]).ratio - 1) <= ASKED
    return f"| {' | '.join([*cells, 'yes' if within else 'NO'])} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    machine = machine_facts()
    print(f"{machine.cpu_model}, 1 thread, load {machine.load}, ONNX Runtime {machine.libraries['onnxruntime']}\n")
    print("| model | our p50, ms | ours / loop over run_with_iobinding | ours / loop over run | within 3 % |")
    print("|---|---:|---:|---:|---|")
    with TemporaryDirectory() as folder:
        files = {arguments.file.name: arguments.file} if arguments.file else {}
        for number, (name, (layers, channels)) in enumerate(OWN.items()):
            if not arguments.file:
                files[name] = convolutions(Path(folder) / f"{number}.onnx", layers, channels)
        for name, file in files.items():
            print(row(name, file, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
