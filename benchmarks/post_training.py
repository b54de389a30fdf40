"""What a trained network's accuracy is right after any of the compressions, with nothing trained.

    python benchmarks/post_training.py configs/knowledge-cifar10.yaml --set teacher.model.depth=20

The teacher of the recipe is cut to `--macs` of its multiply-accumulates by every criterion in every scope; factorized
to `--factorized-macs` of them by every kind of factors, metric and rule; quantized by every calibration method, plain,
equalized, with corrected biases, and both; its weights come to share values; some layers get compact filters. Nothing
trains on. Prints tables in Markdown, of accuracies in PyTorch on the first `--samples` of the test split; those
of the int8 models round as the engine does. `--only` prints some of the tables.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import get_args

import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.journal import Journal
from potstill.pipeline.plan import Plan
from potstill.pipeline.progress import Silent
from potstill.pipeline.quantization import Calibration, CalibrationMethod
from potstill.pipeline.recipe import load_recipe
from potstill.stages.cluster import Cluster
from potstill.stages.compact import Compact, Left
from potstill.stages.factorization.metric import MetricName
from potstill.stages.factorization.splits import Kind
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.prune import Budget, Prune
from potstill.stages.pruning.blocks import Scope
from potstill.stages.pruning.importance import Criterion
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context, Stage

UNTRAINED = Recovery(epochs=0)


class Trials:
    """Stages tried on one artifact."""

    def __init__(self, recipe: Path, overrides: list[str], samples: int) -> None:
        self._plan = Plan.of(load_recipe(recipe, overrides), recipe.parent)
        self.teacher = self._plan.initial_artifact()
        self._test = self._plan.data.test.batch(torch.arange(min(samples, len(self._plan.data.test))))

    def accuracy(self, artifact: Artifact) -> str:
        """In percent."""
        example = self._plan.data.example()
        model = artifact.executable(example)
        with torch.no_grad():
            parts = zip(*(tensor.split(250) for tensor in self._test.inputs.values()), strict=True)
            outputs = torch.cat([model(*part) for part in parts])
        return f"{100 * float((outputs.argmax(1) == self._test.target).float().mean()):.2f}"

    def after(self, stage: Stage) -> str:
        """The accuracy after the stage, or why there is none."""
        try:
            return self.accuracy(stage.run(self.teacher, self._context()))
        except StageError as error:
            return str(error).split(". ")[0]

    def _context(self) -> Context:
        folder = Path(tempfile.mkdtemp())
        return self._plan.context(self._plan.steps()[-1], folder, Silent(), Journal(), None, {})


KINDS: tuple[tuple[Kind, ...], ...] = (
    ("svd", "tucker2"),
    ("svd", "spatial"),
    ("svd", "cp"),
    ("svd", "tucker2", "spatial", "cp"),
)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--macs", type=float, default=0.85)
    parser.add_argument("--factorized-macs", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--only", choices=[*TABLES], nargs="+", default=[*TABLES])
    arguments = parser.parse_args()
    trials = Trials(arguments.recipe, arguments.overrides, arguments.samples)
    print(f"As it was given: {trials.accuracy(trials.teacher)} %", flush=True)
    for name in arguments.only:
        share = arguments.factorized_macs if name == "factorize" else arguments.macs
        TABLES[name](trials, share)


def pruned(trials: Trials, macs: float) -> None:
    """Every criterion in every scope."""
    scopes: tuple[Scope, ...] = get_args(Scope)
    criteria: tuple[Criterion, ...] = get_args(Criterion)
    head("criterion", scopes)
    for criterion in criteria:
        stages = [
            Prune(keep=Budget(macs=macs), criterion=criterion, scope=scope, round_to=2, recover=UNTRAINED)
            for scope in scopes
        ]
        row(criterion, map(trials.after, stages))


def factorized(trials: Trials, macs: float) -> None:
    """Every kind of factors by every metric and rule."""
    columns = [(metric, by) for by in ("energy", "sensitivity") for metric in get_args(MetricName)]
    head("kinds", [f"{metric}, {by}" for metric, by in columns])
    for kinds in KINDS:
        stages = [
            Factorize(keep=Keep(macs=macs), metric=metric, by=by, kinds=kinds, round_to=2, recover=UNTRAINED)
            for metric, by in columns
        ]
        row(", ".join(kinds), map(trials.after, stages))


def quantized(trials: Trials, _macs: float) -> None:
    """Every calibration method, with what comes before and after it."""
    methods: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
    head("weight bits, before and after calibration", methods)
    for bits, equalize, bias_correction in product((7, 8), (False, True), (False, True)):
        stages = [
            Quantize(
                weight_bits=bits,
                calibration=Calibration(method=method),
                equalize=equalize,
                bias_correction=bias_correction,
                recover=UNTRAINED,
            )
            for method in methods
        ]
        what = [name for name, on in (("equalize", equalize), ("bias_correction", bias_correction)) if on]
        row(f"{bits}, {' and '.join(what) or 'neither'}", map(trials.after, stages))


def clustered(trials: Trials, _macs: float) -> None:
    """From 4 to 256 values a layer."""
    bits = range(2, 9)
    head("bits", bits)
    row("accuracy", (trials.after(Cluster(bits=each, recover=UNTRAINED)) for each in bits))


def compacted(trials: Trials, macs: float) -> None:
    """Compact filters of every kind, in as many layers as the budget asks for."""
    stages = {
        "depthwise_separable": Compact(keep=Left(macs=macs), recover=UNTRAINED),
        "depthwise_separable, multiplier 2": Compact(keep=Left(macs=macs), multiplier=2, recover=UNTRAINED),
        "grouped, 2 groups": Compact(keep=Left(macs=macs), kind="grouped", recover=UNTRAINED),
    }
    head("filters", stages)
    row("accuracy", map(trials.after, stages.values()))


TABLES: Mapping[str, Callable[[Trials, float], None]] = {
    "prune": pruned,
    "factorize": factorized,
    "quantize": quantized,
    "cluster": clustered,
    "compact": compacted,
}


def head(name: str, columns: Iterable[object]) -> None:
    """The first two lines of a table."""
    names = [str(column) for column in columns]
    print(f"\n| {name} | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")


def row(name: object, cells: Iterable[str]) -> None:
    """One more line, as soon as it is known."""
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
