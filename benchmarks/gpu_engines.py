"""Engines on an NVIDIA GPU: latency by both clocks, throughput, energy, memory and closeness to the model.

    python -m benchmarks.gpu_engines [--only resnet50 resnet56 resnet20] [--seconds 240] [--out FOLDER]

From the repository's root. Untrained networks whose batch norms have seen the data, because latency and energy do not
depend on what the weights are. Every engine is built and accepted by `build_engine` and timed by `compare`, in turns
with PyTorch's own fp32 engine of the same network. Prints a Markdown table, and writes it and everything measured into
`gpu_engines.md` and `gpu_engines.json`. A row that fails says why and the next one follows; after `--seconds` no new
row is begun. `--device cpu` goes through the same rows on the CPU.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.engine import Array
from potstill.export.latency import Timing, compare
from potstill.export.machine import machine_facts
from potstill.export.measurement import Energy, Latency
from potstill.export.parity import numpy_inputs
from potstill.export.target import EngineFile, Target, targets
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, DataSource
from potstill.pipeline.data_checks import RawSamples, Reading
from potstill.pipeline.errors import PotstillError
from potstill.pipeline.networks.network import Network
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.resnet_imagenet import ImageNetResNet
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

EAGER = ("pytorch", "fp32")
ROWS: Sequence[tuple[str, str, Mapping[str, Any]]] = (
    ("pytorch", "fp32", {}),
    ("pytorch", "fp16", {}),
    ("pytorch", "bf16", {}),
    ("onnxruntime", "fp32", {}),
    ("onnxruntime", "fp16", {}),
    ("onnxruntime", "fp16", {"prefer_nhwc": True}),
    ("onnxruntime", "int8", {"min_int8_share": 0.0}),
    ("inductor", "fp32", {}),
    ("inductor", "fp16", {}),
)
"""Runtime, precision and further settings; int8 is asked of ONNX Runtime to see what its CUDA provider makes of it."""


class Images(DataSource):
    """Random images, of which only size and number matter."""

    source: Literal["random_images"] = "random_images"
    side: int
    classes: int

    def read(self, directory: Path) -> Reading:
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
    timing: Timing | None = None
    beside_eager: bool = False
    """Whether it was timed beside PyTorch's fp32 engine, and not beside itself."""
    problem: str = ""
    seconds: float = 0.0
    """That building and measuring took."""

    @property
    def engine(self) -> str:
        """For the table."""
        extra = [name.removeprefix("prefer_") for name, value in self.settings.items() if value is True]
        return " ".join([self.runtime, self.precision, *extra])

    def lines(self) -> Iterator[str]:
        """A Markdown row for every batch size."""
        if self.built is None or self.timing is None:
            yield f"| {self.network} | {self.engine} | | not measured: {self.problem.splitlines()[0]} | | | | | | | |"
            return
        device, energy = self.timing.on_device, self.timing.energy
        on_device = {latency.batch: latency for latency in device.latency} if device else {}
        for index, comparison in enumerate(self.timing.comparisons):
            cells = [
                self.network,
                self.engine,
                str(comparison.batch),
                _ms(comparison.candidate),
                _ms(on_device.get(comparison.batch)),
                f"{comparison.candidate.throughput:,.0f}",
                f"{comparison.ratio:.2f} ({comparison.interval.low:.2f} to {comparison.interval.high:.2f})"
                if self.beside_eager
                else "",
                f"{energy.millijoules:.2f}" if isinstance(energy, Energy) and index == 0 else "",
                f"{device.memory_bytes / 2**20:,.0f}" if device and device.memory_bytes is not None else "",
                _clocks(self.timing),
                f"{self.built.parity.mean_relative:.1e}",
            ]
            yield f"| {' | '.join(cells)} |"

    def dump(self) -> dict[str, Any]:
        """For the JSON file."""
        found: dict[str, Any] = {
            "network": self.network,
            "runtime": self.runtime,
            "precision": self.precision,
            "settings": dict(self.settings),
            "problem": self.problem,
            "beside_pytorch_fp32": self.beside_eager,
            "seconds": round(self.seconds, 1),
        }
        if self.built is not None:
            found["built"] = self.built.model_dump(mode="json", exclude={"audit"})
            found["int8_share"] = None if self.built.audit is None else self.built.audit.int8_share
        if self.timing is not None:
            timing, device = self.timing, self.timing.on_device
            found["comparisons"] = [each.model_dump(mode="json") for each in timing.comparisons]
            found["energy"] = None if timing.energy is None else timing.energy.model_dump(mode="json")
            found["peak_memory_bytes"] = timing.peak_memory_bytes
            found["device_latency"] = [each.model_dump(mode="json") for each in device.latency] if device else []
            found["device_memory_bytes"] = device.memory_bytes if device else None
            states = device.states if device and device.states else ()
            found["device_states"] = [each.model_dump(mode="json") for each in states]
        return found


def _ms(latency: Latency | None) -> str:
    return "" if latency is None else f"{latency.p50_ms:.3f}"


def _clocks(timing: Timing) -> str:
    states = timing.on_device.states if timing.on_device else None
    if states is None:
        return ""
    reasons = {reason for state in states for reason in state.throttling}
    return " → ".join(str(state.sm_clock_mhz) for state in states) + (f" ({', '.join(reasons)})" if reasons else "")


@dataclass
class Bench:
    """One network with what its rows share."""

    name: str
    device: str
    scratch: Path
    data: Dataset = field(init=False)
    artifact: Artifact = field(init=False)
    eager: EngineFile | None = None
    _quantized: Artifact | None = None

    def __post_init__(self) -> None:
        network, side, classes = NETWORKS[self.name]
        self.data = Images(side=side, classes=classes, batch_size=max(BATCHES)).load(Path())
        blueprint = Blueprint(model=network, input_shapes=self.data.input_shapes, num_classes=classes)
        torch.manual_seed(0)
        self.artifact = Artifact(model=settled(blueprint.build(), self.data), blueprint=blueprint)

    def measure(self, row: Row) -> None:
        """Build and time a row's engine; what goes wrong is written into the row."""
        begun = time.monotonic()
        try:
            target = self._target(row)
            target.check()
            row.built = self._built(row, target)
            file = EngineFile(target, row.built.path)
            if (row.runtime, row.precision) == EAGER:
                self.eager = file
            row.beside_eager = self.eager is not None
            row.timing = compare(file, self.eager or file, self._inputs(), energy=True)
        except PotstillError as error:
            row.problem = str(error)
        row.seconds = time.monotonic() - begun

    def _target(self, row: Row) -> Target:
        if row.runtime not in targets():
            raise PotstillError(f"there is no runtime {row.runtime} here")
        settings = {"runtime": row.runtime, "device": self.device, "precision": [row.precision], "batch": BATCHES}
        known = {key: value for key, value in row.settings.items() if self.device == "cuda" or key != "prefer_nhwc"}
        try:
            return targets()[row.runtime].model_validate({**settings, **known})
        except ValueError as error:
            raise PotstillError(" ".join(str(error).split())) from error

    def _built(self, row: Row, target: Target) -> BuiltEngine:
        folder = self.scratch / row.engine.replace(" ", "-")
        folder.mkdir(parents=True)
        artifact = self._int8() if row.precision == "int8" else self.artifact
        metadata = OnnxMetadata(recipe_hash="", stage="benchmark", classes=self.data.classes)
        return build_engine(artifact, target, row.precision, folder, self.data, metadata=metadata)

    def _int8(self) -> Artifact:
        if self._quantized is None:
            context = context_on(self.data, self.scratch / "quantize")
            self._quantized = Quantize(recover=Recovery(epochs=0)).run(self.artifact, context)
        return self._quantized

    def _inputs(self) -> dict[int, dict[str, Array]]:
        test = self.data.test
        return {batch: numpy_inputs(test.batch(torch.arange(batch) % len(test)).inputs) for batch in BATCHES}


@torch.no_grad()
def settled(model: nn.Module, data: Dataset) -> nn.Module:
    """The model with batch norms that have seen the data: untrained ones let activations grow with every block."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()
    model(*data.example(32).values())
    return model.eval()


def main() -> None:
    """Every row of every network; exit code 1 when none could be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    machine = machine_facts()
    begun = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only:
            bench: Bench | None = None
            for runtime, precision, settings in ROWS:
                row = Row(name, runtime, precision, settings)
                rows.append(row)
                if time.monotonic() - begun > arguments.seconds:
                    row.problem = f"the {arguments.seconds:.0f} s that were given for the whole table were over"
                else:
                    bench = bench or Bench(name, arguments.device, Path(scratch) / name)
                    bench.measure(row)
                print(*row.lines(), f"  {row.seconds:.0f} s", sep="\n", file=sys.stderr, flush=True)
                _write(arguments.out, rows, machine.model_dump(mode="json"))
    print((arguments.out / "gpu_engines.md").read_text())
    sys.exit(0 if any(row.timing for row in rows) else 1)


def _write(folder: Path, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    """After every row, so that a run that is cut short leaves what it has."""
    facts = {
        "command": "python -m benchmarks.gpu_engines " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
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
        "| network | engine | batch | host p50 ms | device p50 ms | samples/s | times PyTorch fp32 | mJ a sample | "
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
        yield f"- {row.network}, {row.engine}: {' '.join(words.split())}"


if __name__ == "__main__":
    main()
