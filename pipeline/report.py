"""The report of a run: ``report.json`` is the source, everything that people read is a view of it."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from ..export.measurement import Comparison, EngineMeasurement, Gate, Machine, Ranked, ScoreChange, Value
from .differences import Speedup, score_change, speedup_between
from .errors import UsageError
from .journal import CurvePoint as CurvePoint
from .metric import Metric

VERSION = 3
"""Of the schema; raised whenever an older potstill could no longer read what this one writes."""

FILE = "report.json"


class StepReport(Value):
    """One step of a run and the engine of what it made, built for the first target."""

    name: str
    """Its folder in the run, such as ``02-distill``."""
    stage: str
    reused: bool
    seconds: float
    """That the step itself took when it was made, perhaps in an earlier run; export and measuring not counted."""
    parameters: int
    macs: int
    """Multiply-accumulates for one sample."""
    facts: dict[str, JsonValue]
    """What the stage decided or found, in its own words."""
    curve: tuple[CurvePoint, ...]
    engine: EngineMeasurement
    """The quantized engine once the artifact is quantized, the fp32 engine before that."""
    gate: Gate | None = None
    """Beside the step before; None for the first step, and in reports of older versions."""
    change: ScoreChange | None = None
    """Of the score against the step before, sample by sample; None for accuracies, and for the first step."""
    change_since_teacher: ScoreChange | None = None
    """Likewise against the first step."""

    @field_validator("engine")
    @classmethod
    def _was_timed(cls, engine: EngineMeasurement) -> EngineMeasurement:
        if not engine.latency:
            raise ValueError("has no latency at any batch size")
        return engine

    @property
    def timing(self) -> Comparison:
        """Beside the teacher's engine, at the target's first batch size."""
        return self.engine.latency[0]


class GoalResult(Value):
    """A goal of the recipe against the final engine's number."""

    goal: str
    limit: float
    value: float | None
    """None where it was not measured; such a goal counts as missed."""
    met: bool
    sentence: str


@dataclass(frozen=True)
class Earned:
    """What one step changed. Everything that compares with the step before is None for the teacher, the first one."""

    step: StepReport
    score: ScoreChange | None
    """Against the step before."""
    score_since_teacher: ScoreChange | None
    speedup: Speedup | None
    """Against the step before; that against the teacher is `step.timing`."""
    file_ratio: float | None
    """The step before's file size over this one's; likewise below. None as well where this one's is zero."""
    parameters_ratio: float | None
    macs_ratio: float | None


@dataclass(frozen=True)
class Headline:
    """From the teacher's engine to the final one, at the first batch size; ratios above 1 are gains."""

    teacher: StepReport
    final: StepReport
    score: ScoreChange
    timing: Comparison
    file_ratio: float | None
    parameters_ratio: float | None
    macs_ratio: float | None


class Report(Value):
    """Everything a run is about: what was asked, what was made, and what the engines were measured to be."""

    version: Literal[3] = VERSION
    name: str
    recipe: str
    """The resolved recipe, as YAML."""
    recipe_hash: str
    seed: int
    started: datetime
    seconds: float
    overhead_seconds: float
    """Of those, neither training, nor exporting, nor measuring."""
    machine: Machine
    data: str
    classes: tuple[str, ...]
    """Empty where the task is no classification."""
    steps: Annotated[tuple[StepReport, ...], Field(min_length=1)]
    """In order; the first one is the teacher, the baseline of every comparison."""
    engines: tuple[EngineMeasurement, ...]
    """Of what the last step made, every target in every precision; and what `potstill export` made later."""
    goals: tuple[GoalResult, ...]
    ranking: tuple[Ranked, ...] = ()
    """The final engines, the fastest first, all timed in turns; empty where there is only one."""

    @model_validator(mode="after")
    def _ranks_its_own_engines(self) -> Self:
        unknown = {each.target for each in self.ranking} - {each.target for each in self.engines}
        if unknown:
            raise ValueError(f"ranks {', '.join(sorted(unknown))}, of which there is no final engine")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a run's folder or its ``report.json``, of this version or an older one; UsageError when it cannot be."""
        file = path / FILE if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file}: cannot be read ({_cause(error)}); name the folder of a finished run") from error
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}: is not JSON ({error}); `potstill run` writes it anew") from error
        _demand_known_version(file, content)
        try:
            return cls.model_validate_json(json.dumps(_upgraded(content)))
        except ValidationError as error:
            raise UsageError(f"{file}: is no report of a run: {_first_problem(error)}") from error

    @property
    def metric(self) -> Metric:
        """What the run's engines are judged by."""
        return self.steps[0].engine.score.metric

    @property
    def headline(self) -> Headline:
        """What the whole run made of the teacher."""
        teacher, final = self.steps[0], self.steps[-1]
        return Headline(
            teacher=teacher,
            final=final,
            score=_change(final.change_since_teacher, teacher, final),
            timing=final.timing,
            file_ratio=_quotient(teacher.engine.file_bytes, final.engine.file_bytes),
            parameters_ratio=_quotient(teacher.parameters, final.parameters),
            macs_ratio=_quotient(teacher.macs, final.macs),
        )

    @property
    def earned(self) -> tuple[Earned, ...]:
        """The waterfall: what each step changed, one row a step."""
        first, *others = self.steps
        rows = [Earned(first, None, None, None, None, None, None)]
        for before, step in zip(self.steps, others, strict=False):
            # Timed in turns with the step before, where that was done: the better answer than a quotient.
            direct = step.timing if before is first else step.gate.comparison if step.gate else None
            rows.append(
                Earned(
                    step=step,
                    score=_change(step.change, before, step),
                    score_since_teacher=_change(step.change_since_teacher, first, step),
                    speedup=speedup_between(before.timing, step.timing)
                    if direct is None
                    else Speedup(direct.ratio, direct.interval, direct.verdict),
                    file_ratio=_quotient(before.engine.file_bytes, step.engine.file_bytes),
                    parameters_ratio=_quotient(before.parameters, step.parameters),
                    macs_ratio=_quotient(before.macs, step.macs),
                )
            )
        return tuple(rows)


def _change(paired: ScoreChange | None, before: StepReport, after: StepReport) -> ScoreChange:
    """Sample by sample where that was done: the surer answer."""
    return paired or score_change(before.engine.score, after.engine.score)


def _quotient(before: int, after: int) -> float | None:
    return before / after if after else None


def _demand_known_version(file: Path, content: JsonValue) -> None:
    version = content.get("version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise UsageError(f"{file}: is no report of a run: it has no version; name the folder of a finished run")
    if version > VERSION:
        raise UsageError(
            f"{file}: has version {version}, which a newer potstill wrote; this one reads up to version {VERSION}. "
            "Mend: update potstill, or run the recipe again with this one."
        )


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A report as this version writes it: version 1 knew accuracies alone, and called them so; 2 had fewer numbers."""
    if content["version"] > 1:
        return {**content, "version": VERSION}
    steps, engines = content.get("steps", []), content.get("engines", [])
    renamed = {
        "steps": [{**step, "engine": _with_score(step.get("engine", {}))} for step in steps],
        "engines": [_with_score(engine) for engine in engines],
    }
    return {**content, **renamed, "version": VERSION}


def _with_score(engine: dict[str, Any]) -> dict[str, Any]:
    return {"score" if key == "accuracy" else key: value for key, value in engine.items()}


def _cause(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    place = ".".join(str(part) for part in problems[0]["loc"])
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{place}{': ' if place else ''}{problems[0]['msg']}{more}"
