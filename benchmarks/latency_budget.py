"""Prune by a budget of latency and by one of multiply-accumulates to the same latency: which keeps more accuracy?

    python -m benchmarks.latency_budget [--data .data/cifar10] [--weights resnet20.safetensors --depth 20]
        [--shares 0.5 0.7] [--scope global] [--criterion l2] [--epochs 2] [--seeds 3] [--repeats 3]

From the repository's root. A ResNet is trained on the scikit-learn digits, or on a folder with train.npz and test.npz
(of CIFAR-10: `python ../shared/tools/unpack_data.py cifar10 .data/cifar10`), unless `--weights` names its file. For
each share it is pruned to a budget of latency; then budgets of multiply-accumulates are bisected until one gives an
engine of the same measured latency. Both are trained back in the same way, from the same seeds. Every engine is built
anew and timed `--repeats` times beside the uncut one, in turns with the other. Prints a table in Markdown.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from potstill.export.bench import TargetBench
from potstill.export.machine import machine_facts
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.cost import macs
from potstill.pipeline.data import Dataset, sources
from potstill.pipeline.errors import StageError
from potstill.pipeline.models import load_weights
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.seeding import seeded
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import metric_of
from potstill.stages.prune import Budget, Prune
from potstill.stages.pruning.blocks import Scope
from potstill.stages.pruning.importance import Criterion
from potstill.stages.recovery import Recovery, recover
from potstill.stages.stage import Context
from potstill.stages.train import Train
from tests.support.contexts import context_on

SAME_LATENCY = 0.01
"""How far the two engines' latencies may be apart, as a share of the uncut one's, before another budget is tried."""

MATCHING_TRIALS = 7


@dataclass(frozen=True)
class Pruned:
    """What came of one budget."""

    budget: str
    artifact: Artifact
    latency_shares: list[float]
    accuracies: list[float]


class Comparison:
    """Both budgets on one network."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self._arguments = arguments
        self._scratch = scratch
        self._contexts = 0
        self.data = _data(arguments, scratch)
        self._bench = TargetBench(OnnxRuntimeTarget(), self.data, scratch / "table")
        self.uncut = self._trained()

    def accuracy(self, artifact: Artifact) -> float:
        """On the test split, in per cent."""
        return 100 * metric_of(artifact.model, self.data.test, self._context())

    def macs_left(self, artifact: Artifact) -> float:
        """As a share of the uncut network's."""
        example = self.data.example(1)
        return macs(artifact.model, example) / macs(self.uncut.model, example)

    def at(self, share: float) -> tuple[Pruned, Pruned]:
        """By a budget of latency, and by the budget of multiply-accumulates that gives the same latency."""
        by_latency = self._pruned("latency", share)
        reached = statistics.median(self._latency_shares([by_latency])[0])
        by_macs = self._as_fast(reached)
        first, second = self._latency_shares([by_latency, by_macs])
        return (
            Pruned("latency", by_latency, first, self._recovered(by_latency)),
            Pruned("macs", by_macs, second, self._recovered(by_macs)),
        )

    def _as_fast(self, latency_share: float) -> Artifact:
        low, high, budget = 0.02, 0.999, min(latency_share, 0.99)
        found: list[tuple[float, Artifact]] = []
        for _ in range(MATCHING_TRIALS):
            try:
                artifact = self._pruned("macs", budget)
            except StageError:  # fewer channels than `round_to` would have to stay
                low, budget = budget, (budget + high) / 2
                continue
            share = statistics.median(self._latency_shares([artifact])[0])
            found.append((abs(share - latency_share), artifact))
            if found[-1][0] <= SAME_LATENCY:
                break
            low, high = (budget, high) if share < latency_share else (low, budget)
            budget = (low + high) / 2
        return min(found, key=lambda each: each[0])[1]

    def _pruned(self, measure: str, share: float) -> Artifact:
        stage = Prune(
            keep=Budget.model_validate({measure: share}),
            criterion=self._arguments.criterion,
            scope=self._arguments.scope,
            round_to=self._arguments.round_to,
            recover=Recovery(epochs=0),
        )
        return stage.run(self.uncut, self._context())

    def _recovered(self, artifact: Artifact) -> list[float]:
        recovery = Recovery(epochs=self._arguments.epochs)
        return [
            self.accuracy(recover(artifact, recovery, self._context(seed))) for seed in range(self._arguments.seeds)
        ]

    def _latency_shares(self, artifacts: Sequence[Artifact]) -> list[list[float]]:
        shares: list[list[float]] = [[] for _ in artifacts]
        with self._bench.beside(self.uncut) as beside:
            for _ in range(self._arguments.repeats):
                for own, artifact in zip(shares, artifacts, strict=True):
                    own.append(beside(artifact).share)
        return shares

    def _trained(self) -> Artifact:
        model = ResNet(depth=self._arguments.depth, width=self._arguments.width, shortcut=self._arguments.shortcut)
        blueprint = Blueprint(model=model, input_shapes=self.data.input_shapes, num_classes=self.data.num_classes)
        with seeded(0, "teacher"):
            artifact = Artifact(model=blueprint.build().eval(), blueprint=blueprint)
        if self._arguments.weights is None:
            return Train(epochs=self._arguments.teacher_epochs).run(artifact, self._context(teacher=False))
        load_weights(artifact.model, self._arguments.weights)
        return artifact

    def _context(self, seed: int = 0, *, teacher: bool = True) -> Context:
        self._contexts += 1
        return context_on(
            self.data,
            self._scratch / str(self._contexts),
            seed=seed,
            bench=self._bench,
            teacher=Teacher(self.uncut) if teacher else None,
        )


def _data(arguments: argparse.Namespace, scratch: Path) -> Dataset:
    settings = {"batch_size": 128}
    if arguments.data is None:
        return sources()["digits"].model_validate({"source": "digits", **settings}).load(Path())
    folder = scratch / "data"
    folder.mkdir()
    for name, count in (("train", arguments.train_samples), ("test", arguments.test_samples)):
        with np.load(arguments.data / f"{name}.npz") as stored:
            chosen = np.random.default_rng(0).permutation(len(stored["y"]))[:count]
            np.savez(folder / f"{name}.npz", x=stored["x"][chosen], y=stored["y"][chosen])
    augmented = {"source": "npz", "path": folder, "normalize": "cifar10", "augment": ["random_crop", "flip"]}
    return sources()["npz"].model_validate(augmented | settings).load(Path())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--train-samples", type=int, default=10_000)
    parser.add_argument("--test-samples", type=int, default=10_000)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--shortcut", choices=["conv", "pad"], default="conv")
    parser.add_argument("--teacher-epochs", type=int, default=10)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--criterion", choices=get_args(Criterion), default="l2")
    parser.add_argument("--scope", choices=get_args(Scope), default="global")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        comparison = Comparison(arguments, Path(scratch))
        machine = machine_facts()
        print(f"{machine.cpu_model}, {machine.threads} threads, load {machine.load}, {machine.libraries}")
        print(f"Uncut: {comparison.accuracy(comparison.uncut):.2f} % on {len(comparison.data.test)} test samples\n")
        print("| asked | budget | latency, % of uncut | multiply-accumulates, % | accuracy after recovery, % |")
        print("|---:|---|---:|---:|---:|")
        for share in arguments.shares:
            for pruned in comparison.at(share):
                latency = _spread([100 * each for each in pruned.latency_shares], 1)
                left = 100 * comparison.macs_left(pruned.artifact)
                right = _spread(pruned.accuracies, 2)
                print(f"| {share} | {pruned.budget} | {latency} | {left:.1f} | {right} |", flush=True)


def _spread(values: Sequence[float], decimals: int) -> str:
    middle, low, high = (f"{value:.{decimals}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
