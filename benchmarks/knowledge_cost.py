"""How much longer a training step takes with each method of distillation than with plain `kd`.

    python benchmarks/knowledge_cost.py [--methods kd at …] [--rounds 5] [--write]

Every method trains the same student against the same live teacher, in turns with `kd` in one process, so that a change
of the machine's speed meets both; the ratio is the median over the rounds. Methods for transformers have a pair of
their own. The images are random: no time depends on what is on them, but for `bss`, which is left out. Prints one JSON
object; `--write` keeps it where `potstill list knowledge` reads it.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from potstill.export.bench import TargetBench
from potstill.export.machine import machine_facts
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, Split
from potstill.pipeline.journal import Journal
from potstill.pipeline.networks.network import Network
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.vit import ViT
from potstill.pipeline.progress import Silent
from potstill.pipeline.task import Classification
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.costs import FILE, Costs
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.objective import Distillation, DistillationObjective, grown, methods
from potstill.stages.stage import Context

IMAGE = (3, 32, 32)
NOT_ON_NOISE = ("bss",)
"""Methods whose work depends on what is in the images: bss attacks samples that both networks classify right."""


class Trained:
    """A student in training with one method."""

    def __init__(self, method: Method, student: Blueprint, context: Context) -> None:
        torch.manual_seed(0)
        self._model: nn.Module = student.build().to(memory_format=torch.channels_last)
        self._context = context
        settings = Distillation(knowledge=(method,))
        student = grown(self._model, settings, student, context)
        # A rehearsal's terms have their full weight at any moment.
        self._objective = DistillationObjective(settings, self._model, student, context, rehearsal=True)
        parameters = [*self._model.parameters(), *self._objective.parameters()]
        self._optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
        self._steps = 0

    def step_seconds(self) -> float:
        """The wall time of one step, the data's preparation left out."""
        torch.manual_seed(self._steps)
        split, size = self._context.data.train, self._context.data.batch_size
        batch = self._context.to_device(split.batch(torch.randperm(len(split))[:size]))
        self._model.train()
        begun = time.perf_counter()
        terms = self._objective.terms(self._model, batch, Moment(500, 1000, 5))
        torch.stack(list(terms.values())).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        return time.perf_counter() - begun


def random_data(samples: int, batch_size: int) -> Dataset:
    """Images of noise, 100 classes."""
    images = torch.randint(0, 256, (samples, *IMAGE), dtype=torch.uint8).float() / 255
    train = Split({"image": images}, torch.arange(samples) % 100, normalizations={})
    classes = tuple(map(str, range(100)))
    return Dataset(train, None, train, classes, batch_size, "noise", None, "noise")


def _by_pair(names: list[str]) -> dict[tuple[Network, Network], list[str]]:
    images: tuple[Network, Network] = (ResNet(depth=56, width=16), ResNet(depth=20, width=16))
    tokens: tuple[Network, Network] = (ViT(depth=8, width=128, heads=4), ViT(depth=4, width=64, heads=4))
    of_tokens = [name for name in names if methods()[name].kind == "transformer"]
    return {images: [name for name in names if name not in of_tokens], tokens: of_tokens}


def main() -> None:
    """Time every method beside `kd`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=[name for name in methods() if name not in NOT_ON_NOISE])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    data = random_data(arguments.samples, arguments.batch_size)

    def blueprint(reference: Network) -> Blueprint:
        return Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=data.num_classes)

    relative: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        bare = Context(
            device=torch.device("cpu"),
            precision="fp32",
            data=data,
            task=Classification(),
            step="cost",
            seed=0,
            checkpoints=Path(scratch),
            progress=Silent(),
            journal=Journal(),
            directory=Path(scratch),
            teacher=None,
            artifacts={},
            bench=TargetBench(OnnxRuntimeTarget(), data),
        )
        for (teacher, student), names in _by_pair(arguments.methods).items():
            made = Artifact(model=blueprint(teacher).build().eval(), blueprint=blueprint(teacher))
            context = replace(bare, teacher=Teacher(made))
            plain = Trained(methods()["kd"](), blueprint(student), context)
            plain.step_seconds()  # the first step allocates and chooses kernels
            for name in names:
                other = Trained(methods()[name](), blueprint(student), context)
                other.step_seconds()
                rounds = [other.step_seconds() / plain.step_seconds() for _ in range(arguments.rounds)]
                relative[name] = round(statistics.median(rounds), 2)
                print(f"{name}: {relative[name]:.2f} ({min(rounds):.2f} to {max(rounds):.2f})", flush=True)
    machine = machine_facts()
    costs = Costs(
        command="python benchmarks/knowledge_cost.py",
        pair=f"ResNet-56 to ResNet-20 (of transformers: 8 blocks of 128 to 4 of 64), 32x32 images, batch "
        f"{arguments.batch_size}, live teacher",
        machine=f"{machine.cpu_model}, {torch.get_num_threads()} threads",
        date=datetime.now(UTC).date().isoformat(),
        relative=relative,
    )
    if arguments.write:
        FILE.write_text(costs.model_dump_json(indent=1) + "\n")
    print(costs.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
