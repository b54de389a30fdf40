"""How much longer a training step takes with each method of distillation than with plain `kd`.

    python benchmarks/knowledge_cost.py [--methods kd at …] [--rounds 5] [--write]

Every method trains the same student against the same live teacher, in turns with `kd` in one process, so that a change
of the machine's speed meets both; the ratio is the median over the rounds. The images are random: no time depends on
what is on them. Prints one JSON object; `--write` keeps it where `potstill list knowledge` reads it.
"""

import argparse
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from potstill.export.machine import machine_facts
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset, Split
from potstill.pipeline.journal import Journal
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.progress import Silent
from potstill.pipeline.task import Classification
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.costs import FILE, Costs
from potstill.stages.knowledge.method import Method
from potstill.stages.knowledge.objective import Distillation, DistillationObjective, methods
from potstill.stages.stage import Context

IMAGE = (3, 32, 32)


class Trained:
    """A student in training with one method."""

    def __init__(self, method: Method, student: Blueprint, context: Context) -> None:
        torch.manual_seed(0)
        self._model: nn.Module = student.build().to(memory_format=torch.channels_last)
        self._context = context
        self._objective = DistillationObjective(
            Distillation(knowledge=(method,)), self._model, student, context, rehearsal=True
        )
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
        # In the middle of a training every term has its full weight.
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


def main() -> None:
    """Time every method beside `kd`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(methods()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    data = random_data(arguments.samples, arguments.batch_size)

    def blueprint(depth: int) -> Blueprint:
        reference = ResNet(depth=depth, width=16)
        return Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=data.num_classes)

    teacher = Teacher(Artifact(model=blueprint(56).build().eval(), blueprint=blueprint(56)))
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
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
            teacher=teacher,
            artifacts={},
        )
        plain = Trained(methods()["kd"](), blueprint(20), context)
        plain.step_seconds()  # the first step allocates and chooses kernels
        relative: dict[str, float] = {}
        for name in arguments.methods:
            other = Trained(methods()[name](), blueprint(20), context)
            other.step_seconds()
            rounds = [other.step_seconds() / plain.step_seconds() for _ in range(arguments.rounds)]
            relative[name] = round(statistics.median(rounds), 2)
            print(f"{name}: {relative[name]:.2f} ({min(rounds):.2f} to {max(rounds):.2f})", flush=True)
    machine = machine_facts()
    costs = Costs(
        command="python benchmarks/knowledge_cost.py",
        pair=f"ResNet-56 to ResNet-20, 32x32 images, batch {arguments.batch_size}, live teacher",
        machine=f"{machine.cpu_model}, {torch.get_num_threads()} threads",
        date=datetime.now(UTC).date().isoformat(),
        relative=relative,
    )
    if arguments.write:
        FILE.write_text(costs.model_dump_json(indent=1) + "\n")
    print(costs.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
