"""The report as one page that needs nothing but itself: no network, no scripts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..comparison.asked import Budget
from ..report import Report, StepReport
from . import device_tables, engine_tables, ranking, report_tables, wording
from .curves import training_curves
from .fact_tables import fact_tables
from .ranking_chart import ranking_chart
from .scatter import EnginePoint, scatter
from .scenario_tables import scenario_tables
from .svg import Canvas
from .tables import Table
from .terms import terms_of, terms_table
from .waterfall import waterfall

WIDE, NARROW = 1120.0, 350.0
"""Pixels across a chart on a desktop and on a phone: scaled down, a wide chart's letters would be too small to read."""


@dataclass(frozen=True)
class Chart:
    """One chart in the two forms between which the style sheet chooses."""

    wide: str
    narrow: str


@dataclass(frozen=True)
class Tile:
    """One number of the headline."""

    label: str
    figure: str
    words: str
    detail: str
    gained: bool = False
    """Whether it is sure to be for the better."""


@dataclass(frozen=True)
class Training:
    """The curves of a step that trained."""

    name: str
    drawing: str
    terms: Table | None
    """Of a loss that has several."""


@dataclass(frozen=True)
class StepSection:
    """What a stage says about itself."""

    name: str
    tables: tuple[Table, ...]


def report_html(report: Report) -> str:
    """The whole page."""
    engine = engine_tables.audited(report)
    told = report_tables.metric_words(report)
    points = [_point(step) for step in report.steps]
    return render(
        "report.html.jinja",
        report=report,
        metric=told,
        sentence=report_tables.headline_sentence(report),
        fastest=ranking.ranking_sentence(report),
        warnings=report_tables.warning_sentences(report),
        ranked=ranking.ranking_table(report),
        ranking_chart=in_both_forms(lambda width, key: ranking_chart(report, width, f"ranking-{key}"))
        if len(report.ranking) > 2
        else None,
        tiles=list(_tiles(report)) if len(report.steps) > 1 else [],
        headline=report_tables.headline_table(report),
        goals=report_tables.goals_table(report),
        missed=[goal for goal in report.goals if not goal.met],
        waterfall=_waterfall(report) if len(report.steps) > 1 else None,
        earned=report_tables.earned_table(report),
        steps=report_tables.steps_table(report),
        step_latency=engine_tables.latency_table("", [(step.name, step.engine) for step in report.steps]),
        scatter=scatter_chart(points, "scatter"),
        legend=[step.name for step in report.steps],
        trainings=list(_trainings(report.steps)),
        unvalidated=[step.name for step in report.steps if step.curve and step.curve[-1].validation is None],
        untrained=[step.name for step in report.steps if not step.curve],
        engines=engine_tables.engines_table(report),
        parity=engine_tables.parity_table(report),
        remarks=engine_tables.remarks_table(report),
        latency=engine_tables.latency_table("", [(each.target, each) for each in report.engines]),
        scenarios=list(scenario_tables(report)),
        device_latency=device_tables.device_latency_table(report),
        device_states=device_tables.device_state_table(report),
        audited=engine,
        audit_sentence=engine_tables.audit_sentence(engine.audit) if engine and engine.audit else "",
        audit=engine_tables.audit_table(engine.audit) if engine and engine.audit else None,
        facts=[StepSection(step.name, tuple(fact_tables(step.facts))) for step in report.steps if step.facts],
        run=report_tables.run_table(report),
        machine=report_tables.machine_table(report.machine),
        method=report_tables.method_sentences(report),
    )


def render(template: str, **values: Any) -> str:
    """A template of this package; every value in it is escaped unless it is a drawing of ours."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def scatter_chart(points: Sequence[EnginePoint], key: str, budgets: Sequence[Budget] = ()) -> Chart:
    """The metric against latency in both forms."""
    return in_both_forms(
        lambda width, form: scatter(points, width, 420 if width == WIDE else 320, f"{key}-{form}", budgets)
    )


def _waterfall(report: Report) -> Chart:
    return in_both_forms(lambda width, key: waterfall(report, width, f"waterfall-{key}"))


def in_both_forms(drawn: Callable[[float, str], Canvas]) -> Chart:
    """`drawn` takes the width, and what is to be in its ids."""
    wide, narrow = (drawn(width, name) for name, width in (("wide", WIDE), ("narrow", NARROW)))
    return Chart(wide.markup(), narrow.markup())


def _point(step: StepReport) -> EnginePoint:
    return EnginePoint(step.name, step.name.partition("-")[0], step.engine.score, step.timing.candidate)


def _trainings(steps: Sequence[StepReport]) -> Iterator[Training]:
    for index, step in enumerate(steps):
        if step.curve:
            drawing = training_curves(step, NARROW, f"curve-{index}").markup()
            terms = terms_of(step)
            yield Training(step.name, drawing, terms_table(terms) if terms else None)


def _tiles(report: Report) -> Iterator[Tile]:
    headline = report.headline
    teacher, final, timing = headline.teacher.engine, headline.final.engine, headline.timing
    p50s = (timing.baseline.p50_ms, timing.candidate.p50_ms)
    before, after = (wording.plain(p50, wording.decimals_for(p50s)) for p50 in p50s)
    verdict = "" if timing.verdict == "faster" else f"{timing.verdict}; "
    yield Tile(
        "Speed",
        wording.ratio_in_words(timing.ratio),
        f"p50 {before} → {after} ms",
        f"{verdict}95 % interval {wording.interval(timing.interval, 2)}; batch {timing.batch}, "
        f"{engine_tables.threads_words(final.threads)}, n\u00a0=\u00a0{timing.candidate.samples:,}",
        gained=timing.verdict == "faster",
    )
    change, told = headline.score, report_tables.metric_words(report)
    noise = "" if change.significant else "within noise; "
    direction = "" if told.is_share else f"{told.direction}; "
    yield Tile(
        told.title,
        told.change_told(change.value),
        f"{told.figure(teacher.score.value)} → {told.told(final.score.value)}",
        f"{direction}{noise}95 % interval {told.change_interval(change.interval)}; n\u00a0=\u00a0{final.score.count:,}",
    )
    yield Tile(
        "Engine file",
        wording.ratio_in_words(headline.file_ratio),
        f"{wording.size(teacher.file_bytes)} → {wording.size(final.file_bytes)}",
        f"parameters {headline.teacher.parameters:,} → {headline.final.parameters:,}",
    )
