"""A comparison as a command line asks for it: what is read, and what is demanded of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UsageError
from ..metric import Metric
from .asked import REGRESSION, budget, condition, lines
from .compare import Compared, compare, load
from .contender import Run, Source
from .judging import judged


def compared_as_asked(
    paths: Sequence[Path], *, baseline: Path | None = None, fail_if: Sequence[str] = (), budgets: Sequence[str] = ()
) -> Compared:
    """Read runs and profiles and set them beside each other, with budgets drawn and conditions judged.

    The first of `paths` is what the conditions of `fail_if` are about. A regression is told from `baseline`, or from
    the second path where there are two. A single path may stand alone where something is demanded of it. UsageError
    for what cannot be read or asked.
    """
    before = [] if baseline is None else [baseline]
    compared = compare([(path, load(path)) for path in (*before, *paths)], least=1 if fail_if else 2)
    subject = compared.sources[len(before)]
    conditions = [condition(text, _metric(subject)) for text in fail_if]
    told_from = compared.sources[0] if before else compared.sources[1] if len(compared.sources) == 2 else None
    if told_from is None and any(each.name == REGRESSION for each in conditions):
        raise UsageError(
            "--fail-if: a regression is told from a baseline; name it with --baseline, or as the second run"
        )
    drawn = [budget(text, _chart_metric(compared)) for text in budgets]
    return replace(
        compared,
        budgets=lines(drawn, compared.runs) if compared.same_metric else (),
        judgements=judged(conditions, compared, subject.main, () if told_from is None else told_from.main),
    )


def _metric(source: Source) -> Metric | None:
    return source.report.metric if isinstance(source, Run) else None


def _chart_metric(compared: Compared) -> Metric | None:
    return compared.runs[0].report.metric if compared.runs and compared.same_metric else None
