"""A run that is over, for what is done with it later: its report, its recipe, and the data it was measured on."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ..export.target import Target
from .errors import DataError, ModelError, PotstillError, TaskError, UsageError
from .plan import Plan
from .progress import Progress
from .recipe import Recipe, recipe_from
from .recipe_problems import nearest
from .recipe_yaml import located
from .report import FILE, Report, StepReport
from .run_folder import RunFolder

ORIGIN = "origin.json"
RECIPE = "recipe.yaml"


class Origin(BaseModel):
    """What a run's report does not tell, because it may be published: ``origin.json`` beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path
    """The recipe's folder, where its relative paths start."""
    data: str
    """The fingerprint of the data."""

    def save(self, files: RunFolder) -> None:
        """Write it into the run's folder."""
        files.write_file(ORIGIN, self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder whose last call of `potstill run` came to its end."""

    folder: Path
    report: Report
    recipe: Recipe
    origin: Origin
    recipe_dir: Path | None
    """Where the recipe's relative paths start, where the user says so."""

    @classmethod
    def load(cls, folder: Path, recipe_dir: Path | None = None) -> Self:
        """Read what is needed. UsageError where the folder is none of a run, or of one that has not finished."""
        if not folder.is_dir():
            raise UsageError(f"{folder}: is no folder; name the folder of a finished run, such as runs/digits")
        recipe_text = _text(folder, RECIPE, "is no run: it has no recipe.yaml; name the folder of a finished run")
        unfinished = "has not finished; `potstill run` with its recipe goes on with it"
        if not (folder / FILE).is_file():
            raise UsageError(f"{folder}: the run {unfinished}")
        report = Report.load(folder)
        if report.recipe != recipe_text:
            raise UsageError(f"{folder}: the run was begun anew with other settings and {unfinished}")
        older = "was made by an older potstill, which did not note its data; run its recipe again"
        try:
            origin = Origin.model_validate_json(_text(folder, ORIGIN, older))
        except ValidationError as error:
            raise UsageError(f"{folder / ORIGIN}: is damaged; run the recipe again, which writes it anew") from error
        return cls(folder, report, recipe_from(located(recipe_text, str(folder / RECIPE))), origin, recipe_dir)

    @property
    def directory(self) -> Path:
        """Where the recipe's relative paths start."""
        return self.origin.directory if self.recipe_dir is None else self.recipe_dir.absolute()

    def step(self, name: str | None) -> StepReport:
        """A step by its name or its folder, the last one without; UsageError lists the steps."""
        steps = self.report.steps
        if name is None:
            return steps[-1]
        names = [step.name.partition("-")[2] for step in steps]
        for step, short in zip(steps, names, strict=True):
            if name in (step.name, short):
                return step
        raise UsageError(f"--step: the run {self.folder} has no step `{name}`; {nearest(name, names)}")

    def plan(self, targets: Sequence[Target], progress: Progress) -> Plan:
        """The run's data, task and steps, for these targets in place of the recipe's.

        Raises the errors of what cannot be found or used here, and DataError where the data are other than those that
        the run was measured on.
        """
        recipe = self.recipe.model_copy(update={"targets": tuple(targets)})
        with self._saying_where():
            plan = Plan.of(recipe, self.directory, progress)
        if plan.data.fingerprint != self.origin.data:
            raise DataError(
                f"{self.folder}: the run was measured on other data than there are now ({plan.data.description}; the "
                f"run's: {self.report.data}); bring those back, or run the recipe again"
            )
        return plan

    @contextmanager
    def _saying_where(self) -> Generator[None]:
        try:
            yield
        except (DataError, ModelError, TaskError) as error:
            raise self._with_mend(error) from error

    def _with_mend(self, error: PotstillError) -> PotstillError:
        return type(error)(
            f"{error}\nThe run's recipe lay in {self.origin.directory}, where its relative paths start; if it is "
            "elsewhere now, give that folder by --recipe-dir."
        )


def _text(folder: Path, name: str, otherwise: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: {otherwise}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / name}: cannot be read ({error}); run the recipe again") from error
