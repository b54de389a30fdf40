"""What the teacher's stored outputs are worth: a step of distillation with them, with a live teacher, and without one.

    python benchmarks/teacher_cache.py --data .data/cifar10 --weights .data/weights/resnet56.safetensors [--steps 10]

ResNet-56 to ResNet-20 on CIFAR-10 with crops and flips, in potstill's own training loop: the student alone, the student
with plain `kd` from a live teacher, and with `kd` from stored outputs, whose one pass of the teacher is done before and
timed apart. The three take turns, a few steps each; the ratios are medians over the rounds. Prints one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from potstill.export.bench import TargetBench
from potstill.export.machine import machine_facts
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.journal import Journal
from potstill.pipeline.models import load_weights
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.progress import Silent
from potstill.pipeline.sources.npz import Npz
from potstill.pipeline.task import Classification
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.stage import Context


class Variant:
    """A ResNet-20 in training, as potstill's loop does it: batch, augmentation, terms, backward, step."""

    def __init__(self, knowledge: list[str], blueprint: Blueprint, context: Context, *, live: bool = False) -> None:
        torch.manual_seed(0)
        self._model = blueprint.build().to(memory_format=torch.channels_last).train()
        settings = Distillation.model_validate({"knowledge": knowledge})
        self._objective = DistillationObjective(settings, self._model, blueprint, context, rehearsal=live)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self._context = context
        self._order = torch.randperm(len(context.data.train), generator=torch.Generator().manual_seed(0))
        self._step = 0

    def seconds(self, steps: int) -> float:
        """The wall time of so many steps."""
        begun = time.perf_counter()
        for _ in range(steps):
            self._train_step()
        return time.perf_counter() - begun

    def _train_step(self) -> None:
        data = self._context.data
        index = self._order.roll(-self._step * data.batch_size)[: data.batch_size]
        batch = self._context.to_device(data.train.batch(index, view=data.view(0, 0)))
        terms = self._objective.terms(self._model, batch, Moment(1, 1000, 0))
        torch.stack(list(terms.values())).sum().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1


def main() -> None:
    """Time the three in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.npz and test.npz")
    parser.add_argument("--weights", type=Path, required=True, help="ResNet-56, shortcut pad")
    parser.add_argument("--steps", type=int, default=10, help="a turn's steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = Npz(path=arguments.data, normalize="imagenet", augment=("random_crop", "flip"), views=1)
    data = source.load(Path())

    def blueprint(depth: int) -> Blueprint:
        reference = ResNet(name="resnet", depth=depth, shortcut="pad")
        return Blueprint(model=reference, input_shapes=data.input_shapes, num_classes=data.num_classes)

    student, teacher = blueprint(20), blueprint(56).build()
    load_weights(teacher, arguments.weights)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            device=torch.device("cpu"),
            precision="fp32",
            data=data,
            task=Classification(),
            step="cache",
            seed=0,
            checkpoints=Path(scratch),
            progress=Silent(),
            journal=Journal(),
            directory=Path(scratch),
            teacher=Teacher(Artifact(model=teacher.eval(), blueprint=blueprint(56)), None, Path(scratch)),
            artifacts={},
            bench=TargetBench(OnnxRuntimeTarget(), data),
        )
        alone = Variant([], student, context)
        live = Variant(["kd"], student, context, live=True)
        stored = Variant(["kd"], student, context)
        begun = time.perf_counter()
        stored.seconds(1)  # the teacher's pass over the view
        filling = time.perf_counter() - begun
        for variant in (alone, live):
            variant.seconds(1)
        rounds = [
            [variant.seconds(arguments.steps) for variant in (alone, live, stored)] for _ in range(arguments.rounds)
        ]
    machine = machine_facts()
    print(
        json.dumps(
            {
                "step_s": {
                    name: statistics.median(each[place] for each in rounds) / arguments.steps
                    for place, name in enumerate(("alone", "live", "stored"))
                },
                "live_over_stored": _ratio([each[1] / each[2] for each in rounds]),
                "stored_over_alone": _ratio([each[2] / each[0] for each in rounds]),
                "teacher_pass_s_per_1000_samples": 1000 * filling / len(data.train),
                "machine": machine.cpu_model,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            },
            indent=1,
        )
    )


def _ratio(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    main()
