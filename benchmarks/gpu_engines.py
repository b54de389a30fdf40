"""Engines on an NVIDIA GPU: latency by both clocks, throughput, energy, memory and closeness to the model.

    python -m benchmarks.gpu_engines [--only resnet50 resnet20] [--jobs 4] [--seconds 400] [--out FOLDER]

From the repository's root. Untrained networks whose batch norms have seen the data, because latency and energy do not
depend on what the weights are. Every engine is built and accepted by `build_engine`; all engines of a network are timed
in the same turns by `in_turns`, beside the first; energy is then taken of one engine after the other. Prints a
Markdown table, and writes it and everything measured into `gpu_engines.md` and `gpu_engines.json`. An engine that fails
says why and the others go on; after `--seconds` no new network and no measurement of energy is begun. `--jobs` builds
several engines at once. `--device cpu` goes through the same rows on the CPU.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.energy import counter_of, energy_above, idle_window
from potstill.export.engine import Array
from potstill.export.engine_process import EngineProcess
from potstill.export.gpu_state import device_state
from potstill.export.latency import Contestant, InTurns, in_turns
from potstill.export.machine import machine_facts
from potstill.export.measurement import Comparison, DeviceState, Energy, Latency, NotMeasured
from potstill.export.parity import numpy_inputs
from potstill.export.resampling import compared
from potstill.export.target import EngineFile, Target, targets
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.errors import PotstillError
from potstill.pipeline.networks.network import Network
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.resnet_imagenet import ImageNetResNet
from potstill.pipeline.progress import Progress
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on

BATCHES = (1, 64)
NETWORKS: Mapping[str, tuple[Network, int, int]] = {
    "resnet50": (ImageNetResNet(depth=50, stem="large"), 224, 1000),
    "resnet20": (ResNet(depth=20), 32, 10),
    "resnet56": (ResNet(depth=56), 32, 10),
}
"""Network, the side of its images and the number of classes."""

ROWS: Sequence[tuple[str, str, Mapping[str, Any]]] = (
    ("pytorch", "fp32", {}),
    ("pytorch", "fp16", {}),
    ("pytorch", "bf16", {}),
    ("onnxruntime", "fp32", {}),
    ("onnxruntime", "fp16", {}),
    ("onnxruntime", "fp16", {"prefer_nhwc": True}),
    ("onnxruntime", "int8", {"min_int8_share": 0.0}),
    ("inductor", "fp32", {"cuda_graph": True}),
    ("inductor", "fp16", {"cuda_graph": True}),
)
"""Runtime, precision and further settings. The first is what the others are set beside. Engines of ONNX Runtime run as
CUDA graphs by default; int8 is asked of it to see what its CUDA provider makes of it."""

ONLY_ON_CUDA = ("prefer_nhwc", "cuda_graph")


class Images(DataSource):
    """Random images, of which only size and number matter."""

    source: Literal["random_images"] = "random_images"
    side: int
    classes: int

    def read(self, directory: Path, progress: Progress) -> Reading:
        """64 samples to fit ranges on and 64 to measure on."""
        draws = np.random.default_rng(0)

        def split(name: str) -> RawSamples:
            images = draws.normal(size=(max(BATCHES), 3, self.side, self.side)).astype(np.float32)
            return RawSamples({"image": images}, np.arange(len(images)) % self.classes, name)

        return Reading(split("train"), split("test"), f"random images 3x{self.side}x{self.side}")


@dataclass
class Row:
    """One engine of one network, or why there is none."""

    network: str
    runtime: str
    precision: str
    settings: Mapping[str, Any]
    built: BuiltEngine | None = None
    build_seconds: float = 0.0
    comparisons: tuple[Comparison, ...] = ()
    device_latency: tuple[Latency, ...] = ()
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    energy: dict[int, Energy | NotMeasured] = field(default_factory=dict[int, Energy | NotMeasured])
    states: tuple[DeviceState | None, ...] = ()
    """Before the idle window, and at once after each busy one."""
    problem: str = ""

    @property
    def engine(self) -> str:
        """For the table."""
        extra = [name.removeprefix("prefer_") for name, value in self.settings.items() if value is True]
        return " ".join([self.runtime, self.precision, *extra])

    def target(self, device: str) -> Target:
        """The target that builds and opens the engine; PotstillError where there is no such one."""
        if self.runtime not in targets():
            raise PotstillError(f"there is no runtime {self.runtime} here")
        known = {key: value for key, value in self.settings.items() if device == "cuda" or key not in ONLY_ON_CUDA}
        settings = {"runtime": self.runtime, "device": device, "precision": [self.precision], "batch": BATCHES}
        try:
            return targets()[self.runtime].model_validate({**settings, **known})
        except ValueError as error:
            raise PotstillError(" ".join(str(error).split())) from error

    def lines(self) -> Iterator[str]:
        """A Markdown row for every batch size."""
        if self.problem or self.built is None:
            reason = (self.problem or "not reached in time").splitlines()[0]
            yield f"| {self.network} | {self.engine} | | not measured: {reason[:160]} | | | | | | | |"
            return
        on_device = {latency.batch: latency for latency in self.device_latency}
        for comparison in self.comparisons:
            energy = self.energy.get(comparison.batch)
            cells = [
                self.network,
                self.engine,
                str(comparison.batch),
                _ms(comparison.candidate),
                _ms(on_device.get(comparison.batch)),
                f"{comparison.candidate.throughput:,.0f}",
                f"{comparison.ratio:.2f} ({comparison.interval.low:.2f} to {comparison.interval.high:.2f})",
                f"{energy.millijoules:.2f}" if isinstance(energy, Energy) else "",
                "" if self.device_memory_bytes is None else f"{self.device_memory_bytes / 2**20:,.0f}",
                _clocks(self.states),
                f"{self.built.parity.mean_relative:.1e}",
            ]
            yield f"| {' | '.join(cells)} |"

    def dump(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "network": self.network,
            "runtime": self.runtime,
            "precision": self.precision,
            "settings": dict(self.settings),
            "problem": self.problem,
            "build_seconds": round(self.build_seconds, 1),
            "built": None if self.built is None else self.built.model_dump(mode="json", exclude={"audit"}),
            "int8_share": None if self.built is None or self.built.audit is None else self.built.audit.int8_share,
            "comparisons": [each.model_dump(mode="json") for each in self.comparisons],
            "device_latency": [each.model_dump(mode="json") for each in self.device_latency],
            "peak_memory_bytes": self.peak_memory_bytes,
            "device_memory_bytes": self.device_memory_bytes,
            "energy": {batch: each.model_dump(mode="json") for batch, each in self.energy.items()},
            "states": [None if each is None else each.model_dump(mode="json") for each in self.states],
        }


def _ms(latency: Latency | None) -> str:
    return "" if latency is None else f"{latency.p50_ms:.3f}"


def _clocks(states: Sequence[DeviceState | None]) -> str:
    known = [state for state in states if state is not None]
    reasons = {reason for state in known for reason in state.throttling}
    return " → ".join(str(state.sm_clock_mhz) for state in known) + (f" ({', '.join(reasons)})" if reasons else "")


class Bench:
    """One network, its data, and what its engines are built from."""

    def __init__(self, name: str, device: str, scratch: Path) -> None:
        network, side, classes = NETWORKS[name]
        self._device, self._scratch = device, scratch
        self.data = Images(side=side, classes=classes, batch_size=max(BATCHES)).load(Path())
        blueprint = Blueprint(model=network, input_shapes=self.data.input_shapes, num_classes=classes)
        torch.manual_seed(0)
        self._artifact = Artifact(model=settled(blueprint.build(), self.data), blueprint=blueprint)

    @property
    def inputs(self) -> dict[int, dict[str, Array]]:
        """By batch size."""
        test = self.data.test
        return {batch: numpy_inputs(test.batch(torch.arange(batch) % len(test)).inputs) for batch in BATCHES}

    def build(self, row: Row) -> Row:
        """Build and accept a row's engine and try it; what goes wrong is written into the row."""
        begun = time.monotonic()
        try:
            target = row.target(self._device)
            target.check()
            folder = self._scratch / row.engine.replace(" ", "-")
            folder.mkdir(parents=True)
            artifact = self._quantized() if row.precision == "int8" else self._artifact
            metadata = OnnxMetadata(recipe_hash="", stage="benchmark", classes=self.data.classes)
            row.built = build_engine(artifact, target, row.precision, folder, self.data, metadata=metadata)
            with target.open(row.built.path) as engine:
                for inputs in self.inputs.values():
                    engine.bind(inputs)
                    engine.timed(2)
                    engine.device_timed(2)
        except Exception as error:  # one engine that breaks must not cost the others
            row.problem = str(error) if isinstance(error, PotstillError) else f"{type(error).__name__}: {error}"
        row.build_seconds = time.monotonic() - begun
        return row

    def _quantized(self) -> Artifact:
        context = context_on(self.data, self._scratch / "quantize")
        return Quantize(recover=Recovery(epochs=0)).run(self._artifact, context)


@torch.no_grad()
def settled(model: nn.Module, data: Dataset) -> nn.Module:
    """The model with batch norms that have seen the data: untrained ones let activations grow with every block."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()
    model(*data.example(32).values())
    return model.eval()


def build_rows(rows: Sequence[Row], device: str, scratch: Path, jobs: int, seconds: float) -> list[Row]:
    """Every row built or with its problem, `jobs` of them at once; what is not built in time is given up."""
    if jobs == 1:
        return [_build_alone(device, scratch, jobs, row) for row in rows]
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    builds = [pool.submit(_build_alone, device, scratch, jobs, row) for row in rows]
    wait(builds, timeout=seconds)
    built = [
        build.result() if build.done() else replace(row, problem=f"it was not built within {seconds:.0f} s")
        for build, row in zip(builds, rows, strict=True)
    ]
    pool.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.terminate()
    return built


def _build_alone(device: str, scratch: Path, jobs: int, row: Row) -> Row:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    return Bench(row.network, device, scratch / row.network / row.engine.replace(" ", "-")).build(row)


def time_together(rows: Sequence[Row], device: str, inputs: Mapping[int, Mapping[str, Array]]) -> None:
    """Time all engines that were built in the same turns; each is then set beside the first."""
    files = [EngineFile(row.target(device), row.built.path) for row in rows if row.built is not None]
    found = in_turns([Contestant(file, inputs) for file in files])
    for index, row in enumerate(rows):
        _write_down(row, found, index)


def _write_down(row: Row, found: InTurns, index: int) -> None:
    row.comparisons = tuple(compared(batch, blocks[0], blocks[index]) for batch, blocks in found.blocks.items())
    row.device_latency = found.device_latency(index)
    row.peak_memory_bytes = found.peak_memory_bytes[index]
    row.device_memory_bytes = found.device_memory_bytes[index]


def take_energy(rows: Sequence[Row], device: str, inputs: Mapping[int, Mapping[str, Array]]) -> None:
    """Of one engine after the other, above what the GPU takes while all of them are open and none runs."""
    counter = counter_of(device)
    if isinstance(counter, NotMeasured):
        for row in rows:
            row.energy = dict.fromkeys(inputs, counter)
        return
    with ExitStack() as stack, ThreadPoolExecutor(len(rows)) as pool:
        files = [EngineFile(row.target(device), row.built.path) for row in rows if row.built is not None]
        processes = [*pool.map(lambda file: stack.enter_context(EngineProcess(file.target, file.path)), files)]
        idle = idle_window(counter)
        for row, process in zip(rows, processes, strict=True):
            states = [device_state()]
            for batch, values in inputs.items():
                process.bind(values)
                process.warm_up(0.2)
                row.energy[batch] = energy_above(idle, counter, process.run_for, batch)
                states.append(device_state())
            row.states = tuple(states)


def main() -> None:
    """Every row of every network; exit code 1 when none could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--runtimes", nargs="+", default=[*{row[0]: None for row in ROWS}])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--build-seconds", type=float, default=600)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    begun = time.monotonic()
    rows = [Row(name, *row) for name in arguments.only for row in ROWS if row[0] in arguments.runtimes]
    with tempfile.TemporaryDirectory() as scratch:
        rows = build_rows(rows, arguments.device, Path(scratch), arguments.jobs, arguments.build_seconds)
        told = partial(_told, arguments.out, rows, begun)
        told("built " + ", ".join(f"{row.network} {row.engine} {row.build_seconds:.0f} s" for row in rows))
        for name in arguments.only:
            inputs = Bench(name, arguments.device, Path(scratch)).inputs
            for measure, what in ((_time, "timed"), (_take_energy, "energy")):
                if time.monotonic() - begun < arguments.seconds:
                    measure([row for row in rows if row.network == name], arguments.device, inputs)
                    told(f"{name}: {what}")
    print((arguments.out / "gpu_engines.md").read_text())
    sys.exit(0 if any(row.comparisons for row in rows) else 1)


def _time(rows: Sequence[Row], device: str, inputs: Mapping[int, Mapping[str, Array]]) -> None:
    while able := [row for row in rows if not row.problem]:
        try:
            time_together(able, device, inputs)
            return
        except PotstillError as error:
            # The message names the file of the engine that failed; the others are timed without it.
            for row in [row for row in able if row.built and str(row.built.folder) in str(error)] or able:
                row.problem = str(error)


def _take_energy(rows: Sequence[Row], device: str, inputs: Mapping[int, Mapping[str, Array]]) -> None:
    able = [row for row in rows if row.comparisons]
    try:
        if able:
            take_energy(able, device, inputs)
    except PotstillError as error:
        print(f"energy: {error}", file=sys.stderr)


def _told(folder: Path, rows: Sequence[Row], begun: float, what: str) -> None:
    print(f"{time.monotonic() - begun:.0f} s: {what}", file=sys.stderr, flush=True)
    _write(folder, rows)


def _write(folder: Path, rows: Sequence[Row]) -> None:
    """After every part, so that a run that is cut short leaves what it has."""
    facts = {
        "command": "python -m benchmarks.gpu_engines " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts().model_dump(mode="json"),
        "rows": [row.dump() for row in rows],
    }
    (folder / "gpu_engines.json").write_text(json.dumps(facts, indent=1))
    (folder / "gpu_engines.md").write_text("\n".join(_markdown(rows, facts)) + "\n")


def _markdown(rows: Sequence[Row], facts: Mapping[str, Any]) -> Iterator[str]:
    machine = facts["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    yield f"`{facts['command']}`, {facts['date']}"
    yield ""
    for gpu in machine["gpus"]:
        yield f"- {gpu['name']}, driver {gpu['driver']}, CUDA {gpu['cuda']} (driver: {gpu['driver_cuda']})"
    yield f"- {machine['cpu_model']}, {machine['cores']} cores; {machine['system']}, Python {machine['python']}"
    yield f"- {libraries}"
    yield ""
    yield (
        "| network | engine | batch | host p50 ms | device p50 ms | samples/s | times the first | mJ a sample | "
        "GPU MiB | SM MHz | mean difference |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---|---:|"
    for row in rows:
        yield from row.lines()
    remarks = [(row, remark) for row in rows if row.built is not None for remark in row.built.remarks]
    problems = [(row, row.problem) for row in rows if row.problem]
    if remarks or problems:
        yield ""
    for row, words in (*remarks, *problems):
        yield f"- {row.network}, {row.engine}: {' '.join(words.split())[:600]}"


if __name__ == "__main__":
    main()
