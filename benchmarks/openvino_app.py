"""Our p50 of an OpenVINO engine beside that of OpenVINO's own `benchmark_app`, on the same file, in turns.

    python -m benchmarks.openvino_app [--seconds 5] [--rounds 6] [--only resnet ...]

From the repository's root, with OpenVINO installed. Untrained networks, batch 1, one thread. Both compile the file for
the same shape with the same settings; `benchmark_app` is told to leave the input's type alone, which it otherwise makes
uint8, and tells hundredths of a millisecond. Whoever goes first changes from round to round. Prints a table in
Markdown: the median over the rounds of each p50 and of their ratio, and the ratio's range.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.families import made
from potstill.export.engine_process import EngineProcess
from potstill.export.onnx_file import OnnxMetadata
from potstill.export.openvino.session import settings
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.openvino_runtime import OpenVinoTarget
from potstill.export.target import Source
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on

NETWORKS = {"resnet": "resnet (20 layers, 64 channels)", "vit": "vit (4 blocks, 192 channels)"}
QUANTIZE = Quantize(grids="symmetric", recover=Recovery(epochs=0))
APP = Path(sys.executable).with_name("benchmark_app")


def main() -> None:
    """Build each engine and time it by both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", default=[*NETWORKS])
    arguments = parser.parse_args()
    print("| network | precision | ours, ms | benchmark_app, ms | ours over theirs | range |")
    print("|---|---|---:|---:|---:|---:|")
    for name in arguments.only:
        for precision in ("fp32", "int8"):
            with tempfile.TemporaryDirectory() as scratch:
                file, shape = built(NETWORKS[name], precision, Path(scratch))
                print(row(name, precision, file, shape, arguments.seconds, arguments.rounds), flush=True)


def built(network: str, precision: str, folder: Path) -> tuple[Path, tuple[int, ...]]:
    """The engine's file and the shape of its one input at batch 1."""
    data, artifact = made(network)
    if precision == "int8":
        artifact = QUANTIZE.run(artifact, context_on(data, folder / "quantize"))
    metadata = OnnxMetadata(recipe_hash="", stage="benchmark", classes=data.classes)
    source = Source(artifact=artifact, data=data, metadata=metadata)
    file = OpenVinoTarget().make(source, precision, folder).file
    (inputs,) = numpy_inputs(data.example(1)).values()
    return file, inputs.shape


def row(name: str, precision: str, file: Path, shape: tuple[int, ...], seconds: float, rounds: int) -> str:
    """Both timed in turns."""
    turns: tuple[Callable[[], float], ...] = (
        lambda: our_p50_ms(file, shape, seconds),
        lambda: their_p50_ms(file, shape, seconds),
    )
    found: list[tuple[float, float]] = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        times = {which: turns[which]() for which in order}
        found.append((times[0], times[1]))
    ours, theirs = (statistics.median(each) for each in zip(*found, strict=True))
    ratios = [mine / other for mine, other in found]
    return (
        f"| {name} | {precision} | {ours:.3f} | {theirs:.3f} | {statistics.median(ratios):.3f} | "
        f"{min(ratios):.3f} to {max(ratios):.3f} |"
    )


def our_p50_ms(file: Path, shape: tuple[int, ...], seconds: float) -> float:
    """In a process of its own, as `potstill` measures."""
    values = np.random.default_rng(0).random(shape, np.float32)
    with EngineProcess(OpenVinoTarget(), file) as process:
        process.bind({"image": values})
        per_run = process.warm_up(0.5)
        return float(np.median(process.timed(math.ceil(seconds / per_run)))) * 1e3


def their_p50_ms(file: Path, shape: tuple[int, ...], seconds: float) -> float:
    """By `benchmark_app`, which warms up by one run."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        plain = {name: value for name, value in settings(1).items() if value != ""}
        config.write_text(json.dumps({"CPU": {name: _written(value) for name, value in plain.items()}}))
        command = [str(APP), "-m", str(file), "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nthreads", "1"]
        command += ["-api", "sync", "-t", str(math.ceil(seconds)), "-shape", str([*shape]), "-ip", "f32"]
        command += ["-pin", "NO", "-load_config", str(config), "-json_stats"]
        command += ["-report_type", "no_counters", "-report_folder", folder]
        subprocess.run(command, check=True, capture_output=True)
        report = json.loads((Path(folder) / "benchmark_report.json").read_bytes())
        return float(report["execution_results"]["latency (ms)"])


def _written(value: object) -> str:
    return {True: "YES", False: "NO"}[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
