"""What a trained network's accuracy is right after pruning, factorization or quantization, with nothing trained.

    python benchmarks/post_training.py configs/knowledge-cifar10.yaml --set teacher.model.depth=20

The teacher of the recipe is cut to `--macs` of its multiply-accumulates by every criterion in every scope, factorized
to `--factorized-macs` of them by every kind of factors, metric and rule, and quantized by every calibration method with
7- and 8-bit weights, each plain, equalized, with corrected biases, and both; none trains on. Prints a table in Markdown
for each, of accuracies in PyTorch on the first `--samples` of the test split; those of the int8 models round as the
engine does. `--only prune`, `factorize` or `quantize` prints one of the tables.
"""

import argparse
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import torch

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.journal import Journal
from potstill.pipeline.plan import Plan
from potstill.pipeline.progress import Silent
from potstill.pipeline.quantization import Calibration, CalibrationMethod
from potstill.pipeline.recipe import load_recipe
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


def _print_factorized(trials: Trials, share: float) -> None:
    """Print the table of factorizations."""
    columns = [(metric, by) for by in ("energy", "sensitivity") for metric in get_args(MetricName)]
    print(f"\n| kinds | {' | '.join(f'{metric}, {by}' for metric, by in columns)} |\n|---|{'---:|' * len(columns)}")
    for kinds in KINDS:
        stages = [
            Factorize(keep=Keep(macs=share), metric=metric, by=by, kinds=kinds, round_to=2, recover=UNTRAINED)
            for metric, by in columns
        ]
        print(f"| {', '.join(kinds)} | {' | '.join(map(trials.after, stages))} |", flush=True)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--macs", type=float, default=0.85)
    parser.add_argument("--factorized-macs", type=float, default=0.6)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--only", choices=("prune", "factorize", "quantize"))
    parser.add_argument("--weight-bits", type=int, choices=(7, 8), nargs="+", default=(7, 8))
    arguments = parser.parse_args()
    trials = Trials(arguments.recipe, arguments.overrides, arguments.samples)
    print(f"As it was given: {trials.accuracy(trials.teacher)} %\n", flush=True)
    if arguments.only in (None, "prune"):
        _print_pruned(trials, arguments.macs)
    if arguments.only in (None, "factorize"):
        _print_factorized(trials, arguments.factorized_macs)
    if arguments.only in (None, "quantize"):
        _print_quantized(trials, arguments.weight_bits)


def _print_pruned(trials: Trials, macs: float) -> None:
    scopes: tuple[Scope, ...] = get_args(Scope)
    print(f"| criterion | {' | '.join(scopes)} |\n|---|{'---:|' * len(scopes)}")
    criteria: tuple[Criterion, ...] = get_args(Criterion)
    for criterion in criteria:
        stages = [
            Prune(keep=Budget(macs=macs), criterion=criterion, scope=scope, round_to=2, recover=UNTRAINED)
            for scope in scopes
        ]
        print(f"| {criterion} | {' | '.join(map(trials.after, stages))} |", flush=True)
    print()


def _print_quantized(trials: Trials, weight_bits: Iterable[Literal[7, 8]]) -> None:
    methods: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
    print(f"| weight bits, before and after calibration | {' | '.join(methods)} |\n|---|{'---:|' * len(methods)}")
    for bits in weight_bits:
        for equalize, bias_correction in product((False, True), repeat=2):
            cells = [
                trials.after(
                    Quantize(
                        weight_bits=bits,
                        calibration=Calibration(method=method),
                        equalize=equalize,
                        bias_correction=bias_correction,
                        recover=UNTRAINED,
                    )
                )
                for method in methods
            ]
            what = [name for name, on in (("equalize", equalize), ("bias_correction", bias_correction)) if on]
            print(f"| {bits}, {' and '.join(what) or 'neither'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
