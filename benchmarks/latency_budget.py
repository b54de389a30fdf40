"""Prune by a budget of latency and by one of multiply-accumulates: is the asked latency met?

    python benchmarks/latency_budget.py [--depth 20] [--width 32] [--shares 0.4 0.6 0.8] [--repeats 3]

Untrained ResNets on the digits' shapes: latency does not depend on the weights. Each pruned engine is built anew and
timed in turns with the uncut one, `--repeats` times, after the stage has decided. Prints one JSON line for each share
and budget.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch

from potstill.export.bench import TargetBench
from potstill.export.machine import machine_facts
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import sources
from potstill.pipeline.journal import Journal
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.progress import Silent
from potstill.pipeline.task import Classification
from potstill.stages.prune import Budget, Prune
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context


def main() -> None:
    """Prune one network to each share by both budgets, and time what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    data = sources()["digits"].model_validate({"source": "digits"}).load(Path())
    model = ResNet(depth=arguments.depth, width=arguments.width)
    blueprint = Blueprint(model=model, input_shapes=data.input_shapes, num_classes=data.num_classes)
    torch.manual_seed(0)
    artifact = Artifact(model=blueprint.build().eval(), blueprint=blueprint)
    bench = TargetBench(OnnxRuntimeTarget(), data)
    print(json.dumps(machine_facts().model_dump(mode="json")))
    for share in arguments.shares:
        for measure in ("latency", "macs"):
            with tempfile.TemporaryDirectory() as scratch:
                context = Context(
                    device=torch.device("cpu"),
                    precision="fp32",
                    data=data,
                    task=Classification(),
                    step="prune",
                    seed=0,
                    checkpoints=Path(scratch),
                    progress=Silent(),
                    journal=Journal(),
                    directory=Path(scratch),
                    teacher=None,
                    artifacts={},
                    bench=bench,
                )
                budget = Budget.model_validate({measure: share})
                pruned = Prune(keep=budget, recover=Recovery(epochs=0)).run(artifact, context)
            with bench.beside(artifact) as beside:
                shares = [beside(pruned).share for _ in range(arguments.repeats)]
            print(
                json.dumps(
                    {
                        "budget": measure,
                        "asked": share,
                        "latency_share": round(statistics.median(shares), 4),
                        "lowest": round(min(shares), 4),
                        "highest": round(max(shares), 4),
                        "left": context.journal.facts["left"],
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
