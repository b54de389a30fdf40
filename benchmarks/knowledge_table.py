"""Every method of distillation on one pair of networks, several seeds each, beside the student trained plainly.

    python benchmarks/knowledge_table.py configs/knowledge-digits.yaml --seeds 5 --output knowledge-digits

The recipe's first stages make or load the teacher; its last one, a `distill`, is run once for every method and seed,
with that method alone as `knowledge:` and the method's own default weights. `none` is the same training without a
teacher. Results go to OUTPUT.jsonl, one line a training, as they come; what is there is not trained again, so a stopped
table goes on where it was. Then OUTPUT.md is written: test accuracy of the last epoch, mean ± standard deviation over
the seeds, and the paired difference to `none` with its p-value (two-sided paired t-test). Where the recipe holds out a
validation split, the best epoch on it is told, too; the test split chooses nothing.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from scipy import stats  # comes with scikit-learn

from potstill.export.machine import machine_facts
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.journal import Journal
from potstill.pipeline.plan import Plan
from potstill.pipeline.progress import Silent
from potstill.pipeline.recipe import load_recipe
from potstill.pipeline.seeding import derive
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import metric_of
from potstill.stages.distill import Distill
from potstill.stages.knowledge.objective import methods

NONE = "none"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Result:
    """One training."""

    method: str
    seed: int
    test: float
    """Test accuracy of the last epoch."""
    validation: float | None
    """Validation accuracy of the last epoch."""
    best_validation: float | None
    """Of the best epoch."""
    seconds: float


class Table:
    """The trainings of one recipe."""

    def __init__(self, recipe: Path, overrides: list[str], output: Path) -> None:
        self.recipe = load_recipe(recipe, overrides)
        self.plan = Plan.of(self.recipe, recipe.parent)
        self._lines = output.with_suffix(".jsonl")
        found = self._lines.read_text().splitlines() if self._lines.exists() else []
        self.results = [Result(**json.loads(line)) for line in found]
        last = self.recipe.stages[-1]
        if not isinstance(last, Distill):
            raise SystemExit(f"{recipe}: the last stage must be a `distill`, which every method is tried in")
        self._distill = last
        self.refused: dict[str, str] = {}
        """Why methods cannot serve the pair, by name."""
        self._scratch = tempfile.TemporaryDirectory()
        self._teacher: Teacher | None = None
        self._artifact: Artifact | None = None

    def run(self, names: list[str], seeds: int) -> None:
        """Train what is missing, seed by seed, so that a table that was stopped holds every method."""
        done = {(result.method, result.seed) for result in self.results}
        for seed in range(seeds):
            for name in names:
                if (name, seed) not in done and name not in self.refused:
                    self._try(name, seed)

    def _try(self, name: str, seed: int) -> None:
        try:
            self._keep(self._trained(name, seed))
        except StageError as error:
            self.refused[name] = str(error).split(". ")[0]
            print(f"{name}: {error}", flush=True)

    def _keep(self, result: Result) -> None:
        self.results.append(result)
        self._lines.parent.mkdir(parents=True, exist_ok=True)
        with self._lines.open("a") as file:
            file.write(json.dumps(result.__dict__) + "\n")
        print(f"{result.method} seed {result.seed}: {100 * result.test:.2f} % in {result.seconds:.0f} s", flush=True)

    def _made_teacher(self) -> tuple[Teacher, Artifact]:
        """The artifact of the stages before the last one, made once for all methods and seeds."""
        if self._teacher is None or self._artifact is None:
            artifact = self.plan.initial_artifact()
            for step in self.plan.steps()[:-1]:
                if step.stage is not None:
                    context = self.plan.context(step, self._folder("teacher"), Silent(), Journal(), None, {})
                    artifact = step.stage.run(artifact, context)
            self._teacher, self._artifact = self.plan.teacher_of(artifact, self._lines.parent), artifact
            context = self.plan.context(self.plan.steps()[-1], self._folder("x"), Silent(), Journal(), None, {})
            right = metric_of(self._teacher.model(context), self.plan.data.test, context)
            print(f"teacher: {100 * right:.2f} %", flush=True)
        return self._teacher, self._artifact

    def _trained(self, name: str, seed: int) -> Result:
        teacher, artifact = self._made_teacher()
        step = self.plan.steps()[-1]
        context = self.plan.context(step, self._folder(f"{name}-{seed}"), Silent(), Journal(), teacher, {})
        context = replace(context, seed=derive(seed, "table"))
        knowledge = () if name == NONE else (methods()[name](),)
        stage = self._distill.model_copy(update={"knowledge": knowledge, "task_weight": None})
        begun = time.monotonic()
        student = stage.run(artifact, context)
        seconds = time.monotonic() - begun
        validations = [point.validation for point in context.journal.curve if point.validation is not None]
        return Result(
            method=name,
            seed=seed,
            test=metric_of(student.model, self.plan.data.test, context),
            validation=validations[-1] if validations else None,
            best_validation=max(validations) if validations else None,
            seconds=seconds,
        )

    def _folder(self, name: str) -> Path:
        folder = Path(self._scratch.name) / name
        folder.mkdir(exist_ok=True)
        return folder

    def markdown(self, command: str, names: list[str]) -> str:
        """The table with its command, machine and date."""
        machine = machine_facts()
        lines = [
            f"Command: `{command}`  ",
            f"Data: {self.plan.data.description}  ",
            f"Student: {self._distill.epochs} epochs, batch {self.plan.data.batch_size}, the same schedule for all  ",
            f"Machine: {machine.cpu_model}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"{self.plan.device.type}, {self.plan.precision}; {datetime.now(UTC).date().isoformat()}",
            "",
            "| method | test, last epoch (%) | against `none` (points) | p | validation, best epoch (%) | seeds |",
            "|---|---|---|---|---|---|",
            *self._rows(names),
        ]
        return "\n".join(lines) + "\n"

    def _rows(self, names: list[str]) -> Iterator[str]:
        plain = self._by_seed(NONE)
        for name in names:
            found = self._by_seed(name)
            if not found:
                yield f"| {name} | {self.refused.get(name, 'not measured')} | | | | 0 |"
                continue
            tests = [100 * result.test for result in found.values()]
            bests = [100 * result.best_validation for result in found.values() if result.best_validation is not None]
            shared = sorted(found.keys() & plain.keys())
            gains = [100 * (found[seed].test - plain[seed].test) for seed in shared]
            gain, p = ("", "") if name == NONE else _compared(gains)
            best = _mean(bests) if bests else "no validation split"
            yield f"| {name} | {_mean(tests)} | {gain} | {p} | {best} | {len(tests)} |"

    def _by_seed(self, name: str) -> dict[int, Result]:
        return {result.seed: result for result in self.results if result.method == name}


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def _compared(gains: list[float]) -> tuple[str, str]:
    """The mean gain, and the p-value of its being zero; bold where it is significant."""
    if not gains:
        return "", ""
    mean = statistics.mean(gains)
    if len(gains) < 2 or statistics.stdev(gains) == 0:
        return f"{mean:+.2f}", ""
    p = float(stats.ttest_1samp(gains, 0.0).pvalue)
    shown = f"**{mean:+.2f}**" if p < SIGNIFICANT else f"{mean:+.2f}"
    return shown, "" if math.isnan(p) else f"{p:.3f}"


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--methods", nargs="+", default=[NONE, *methods()])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="as in `potstill run`")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0 leaves them as they are")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    table = Table(arguments.recipe, arguments.set, arguments.output)
    table.run(arguments.methods, arguments.seeds)
    command = f"python benchmarks/knowledge_table.py {arguments.recipe} --seeds {arguments.seeds}"
    text = table.markdown(command, arguments.methods)
    arguments.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
