"""What each step earned: how far it moved latency, by factors, and the metric, by its own measure."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...export.measurement import ScoreChange
from ..report import Earned, Report
from . import wording
from .metric_words import MetricWords
from .svg import Box, Canvas, Scale, scale_over, shortened, text_width, tick_texts

ROW, BAR = 38.0, 14.0
NARROW_BELOW = 560.0


@dataclass(frozen=True)
class _Layout:
    """Where things stand across the width, and how high a row is."""

    latency: tuple[float, float]
    latency_text: float
    score: tuple[float, float]
    score_text: float
    row: float
    names: float
    """Room for a step's name."""
    stacked: bool
    """Whether names and figures stand above the bars, for want of width."""


def waterfall(report: Report, width: float, key: str, beside: Sequence[Report] = ()) -> Canvas:
    """Bars on a logarithmic axis, so that a bar's length is its factor, beside the metric's changes with intervals.

    The axes also hold what the reports `beside` it need, so that their charts can be read against each other.
    """
    rows = report.earned
    layout = _layout(rows, width)
    top = 46.0 if not layout.stacked else 40.0
    canvas = Canvas(width, top + layout.row * len(rows) + 34, "What each step earned", _description(report), key)
    bottom = top + layout.row * len(rows)
    shown = [rows, *(other.earned for other in beside)]
    speeds = scale_over([1.5, *(speed for each in shown for speed in _speeds(each))], *layout.latency, logarithmic=True)
    told = MetricWords.of(row.step.engine.score for row in rows)
    alike = [row for each in shown for row in each if row.step.engine.score.metric == told.metric]
    changes = _score_scale(alike, layout.score, told)
    _heads(canvas, layout, rows[0].step.timing.candidate.batch, told)
    _axis(canvas, speeds, top, bottom, 5 if not layout.stacked else 3)
    _axis(canvas, changes, top, bottom, 4 if not layout.stacked else 3)
    canvas.line((changes(0), top), (changes(0), bottom), "zero")
    for index in range(len(rows)):
        _row(canvas, layout, rows, index, top + index * layout.row, (speeds, changes), told)
        if index:
            canvas.line((0, top + index * layout.row), (width, top + index * layout.row), "rule")
    return canvas


def _layout(rows: Sequence[Earned], width: float) -> _Layout:
    if width < NARROW_BELOW:
        split = round(width * 0.58)
        figures = max(text_width(_figure(row)) for row in rows)
        return _Layout((4, split), split, (split + 22, width - 8), width, 58.0, split - figures - 8, stacked=True)
    names = min(max(text_width(row.step.name) for row in rows) + 14, width * 0.24)
    figures, gap = max(150.0, *(text_width(_figure(row)) + 12 for row in rows)), 26.0
    bars = width - names - 1.6 * figures - gap
    first = names + bars * 0.58
    second = first + figures + gap
    return _Layout(
        (names, first), first + figures, (second, width - 0.6 * figures), width, ROW, names - 14, stacked=False
    )


def _speeds(rows: Sequence[Earned]) -> list[float]:
    """Each step's speed as a multiple of the teacher's."""
    return [1.0, *(row.step.timing.ratio for row in rows[1:])]


def _score_scale(rows: Sequence[Earned], pixels: tuple[float, float], told: MetricWords) -> Scale:
    changes = [row.score for row in rows if row.score is not None]
    ends = [told.drawn(end) for change in changes for end in (change.interval.low, change.interval.high)]
    # So that changes which are nothing do not fill the axis: half a point, or a hundredth of the metric.
    least = 0.5 if told.is_share else max(abs(row.step.engine.score.value) for row in rows) / 100 or 1.0
    return scale_over([*ends, -least, least], *pixels)


def _heads(canvas: Canvas, layout: _Layout, batch: int, told: MetricWords) -> None:
    left = 0 if layout.stacked else layout.latency[0]
    canvas.text(left, 12, "Speed", "axis-title")
    unit = "points" if told.is_share else told.direction
    canvas.text(layout.score[0], 12, shortened(told.title, layout.score[1] - layout.score[0]), "axis-title")
    log = "× teacher, logarithmic" if layout.stacked else f"teacher's p50 over the step's at batch {batch}, logarithmic"
    canvas.text(left, 28, log, "tick", size=11)
    if not layout.stacked:
        canvas.text(layout.latency_text, 28, "by the step → in total", "tick", anchor="end", size=11)
        canvas.text(layout.score_text, 28, "by the step", "tick", anchor="end", size=11)
    canvas.text(layout.score[0], 28, unit if layout.stacked else f"{unit}, 95 % interval", "tick", size=11)


def _axis(canvas: Canvas, scale: Scale, top: float, bottom: float, most: int) -> None:
    canvas.line((scale.start, bottom), (scale.end, bottom), "axis")
    ticks = scale.ticks(most)
    last = -1e9
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        x, half = scale(value), text_width(text, 11) / 2
        canvas.line((x, top), (x, bottom), "grid")
        if x - half > last + 6 and x - half >= 0 and x + half <= canvas.width:
            canvas.text(x, bottom + 18, text, "tick", anchor="middle", size=11)
            last = x + half


def _row(
    canvas: Canvas,
    layout: _Layout,
    rows: Sequence[Earned],
    index: int,
    top: float,
    scales: tuple[Scale, Scale],
    told: MetricWords,
) -> None:
    row, speeds = rows[index], _speeds(rows)
    middle = top + (layout.row / 2 if not layout.stacked else 40)
    baseline = middle + 4 if not layout.stacked else top + 20
    name = shortened(row.step.name, layout.names)
    canvas.text(0, baseline, name, "name", full=row.step.name)
    along, changes = scales
    after, before = along(speeds[index]), along(speeds[max(0, index - 1)])
    _speed_bar(canvas, row, before, after, middle)
    canvas.text(layout.latency_text, baseline, _figure(row), "figure", anchor="end")
    if row.score is not None:
        _whisker(canvas, row.score, changes, middle, told)
        canvas.text(layout.score_text, baseline, told.change(row.score.value), "figure", anchor="end")


def _figure(row: Earned) -> str:
    """By what the step sped up, and to what."""
    if row.speedup is None:
        return "baseline"
    return f"{wording.ratio(row.speedup.ratio)} → {wording.ratio(row.step.timing.ratio)}"


def _speed_bar(canvas: Canvas, row: Earned, before: float, after: float, middle: float) -> None:
    if row.speedup is None:
        canvas.line((after, middle - BAR / 2), (after, middle + BAR / 2), "mark")
        return
    css = {"faster": "gain", "slower": "loss"}.get(row.speedup.verdict, "even")
    canvas.rectangle(
        Box(min(before, after), middle - BAR / 2, max(before, after, min(before, after) + 1), middle + BAR / 2), css
    )
    canvas.line((after, middle - BAR / 2 - 3), (after, middle + BAR / 2 + 3), "mark")


def _whisker(canvas: Canvas, change: ScoreChange, scale: Scale, middle: float, told: MetricWords) -> None:
    low, high = scale(told.drawn(change.interval.low)), scale(told.drawn(change.interval.high))
    css = "even" if not change.significant else "gain" if change.improves else "loss"
    canvas.line((low, middle), (high, middle), f"whisker {css}")
    canvas.circle(scale(told.drawn(change.value)), middle, 4.5, f"dot {css}")


def _description(report: Report) -> str:
    told = MetricWords.of(step.engine.score for step in report.steps)
    rows: list[str] = []
    for row in report.earned:
        if row.speedup is None or row.score is None:
            continue
        noise = "" if row.score.significant else " (within noise)"
        rows.append(
            f"{row.step.name}: {row.speedup.ratio:.2f} times the speed ({row.speedup.verdict}), {told.metric.name} "
            f"{told.change_told(row.score.value)}{noise}"
        )
    return "Each step against the one before it. " + "; ".join(rows) + "."
