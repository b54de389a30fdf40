"""The metric against latency, with intervals and the front of what no other engine beats in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...export.measurement import Latency, Score
from ..comparison.asked import Budget
from ..comparison.pareto import pareto_front
from .budget_lines import drawn_budgets
from .labels import Placed, placed_labels
from .metric_words import MetricWords
from .svg import Box, Canvas, Scale, scale_over, text_width, tick_texts

LOGARITHMIC_FROM = 3.0
"""A wider spread of latencies than this is drawn by logarithm: equal factors, equal distances."""
PIECE = 8.0
"""Pixels between the boxes along a line: less than any label is high."""
NAMES_FROM = 560.0
"""Narrower drawings show the short names, which a list beside them explains."""
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 26.0, 44.0


@dataclass(frozen=True)
class EnginePoint:
    """One engine in the chart."""

    name: str
    short: str
    """Stands for the name where that has no room."""
    score: Score
    latency: Latency
    series: int = 0
    """Engines of one series, such as a run, are joined in order."""
    joined: bool = True
    """Whether the line of its series leads through it."""
    ground: object = None
    """Only points of equal grounds, such as one machine, share a front."""


def scatter(
    points: Sequence[EnginePoint], width: float, height: float, key: str, budgets: Sequence[Budget] = ()
) -> Canvas:
    """The chart in a given size, with names where all of them have room; all points are of one metric."""
    told = MetricWords.of(point.score for point in points)
    canvas = Canvas(width, height, f"{told.title} against latency", _description(points, told), key)
    plot = Box(_left(points, told, height, budgets), TOP, width - RIGHT, height - BOTTOM)
    across, upwards = _scales(points, plot, told, budgets)
    _axes(canvas, plot, across, upwards, points[0].latency.batch, told)

    def place(point: EnginePoint) -> tuple[float, float]:
        return across(point.latency.p50_ms), upwards(told.drawn(point.score.value))

    places = [place(point) for point in points]
    taken = drawn_budgets(canvas, plot, (across, upwards), told, budgets, places)
    front: list[EnginePoint] = []
    lines: list[Box] = []
    worst = plot.bottom if told.metric.higher_is_better else plot.top
    for ground in dict.fromkeys(point.ground for point in points):
        members = pareto_front([point for point in points if point.ground == ground])
        front += members
        steps = _staircase([place(each) for each in members], worst, plot.right)
        canvas.path(steps, "front")
        lines += _boxes_along(steps)
    for series in sorted({point.series for point in points}):
        course = [place(point) for point in points if point.series == series and point.joined]
        canvas.path(course, "course")
        lines += _boxes_along(course)
    whiskers = [whisker for point in points for whisker in _whiskers(canvas, point, across, upwards, told)]
    for point in points:
        css = f"dot series-{point.series % 4}" + (" on-front" if point in front else " beaten")
        canvas.circle(*place(point), 4.5, css)
    _labels(canvas, points, places, plot, [*whiskers, *lines], taken, front)
    return canvas


def _left(points: Sequence[EnginePoint], told: MetricWords, height: float, budgets: Sequence[Budget]) -> float:
    """Room for the figures beside the upward axis."""
    scale = scale_over(_ends(points, told, budgets), height - BOTTOM, TOP)
    return max(LEFT, *(14 + text_width(text, 11) for text in tick_texts(scale.ticks(6))))


def _ends(points: Sequence[EnginePoint], told: MetricWords, budgets: Sequence[Budget]) -> list[float]:
    """Of the upward axis: intervals and budgets."""
    ends = [end for point in points for end in (point.score.interval.low, point.score.interval.high)]
    return [told.drawn(end) for end in (*ends, *(each.limit for each in budgets if not each.is_latency))]


def _scales(
    points: Sequence[EnginePoint], plot: Box, told: MetricWords, budgets: Sequence[Budget]
) -> tuple[Scale, Scale]:
    latencies = [end for point in points for end in (point.latency.p50_interval.low, point.latency.p50_interval.high)]
    latencies += [point.latency.p50_ms for point in points]
    latencies += [each.limit for each in budgets if each.is_latency]
    logarithmic = max(latencies) / min(latencies) > LOGARITHMIC_FROM
    across = scale_over(latencies, plot.left, plot.right, logarithmic=logarithmic)
    return across, scale_over(_ends(points, told, budgets), plot.bottom, plot.top)


def _axes(canvas: Canvas, plot: Box, across: Scale, upwards: Scale, batch: int, told: MetricWords) -> None:
    rows = upwards.ticks(6)
    for value, text in zip(rows, tick_texts(rows), strict=True):
        canvas.line((plot.left, upwards(value)), (plot.right, upwards(value)), "grid")
        canvas.text(plot.left - 8, upwards(value) + 4, text, "tick", anchor="end", size=11)
    columns = across.ticks(8 if canvas.width > 500 else 5)
    for value, text in zip(columns, tick_texts(columns), strict=True):
        canvas.line((across(value), plot.bottom), (across(value), plot.bottom + 4), "axis")
        canvas.text(across(value), plot.bottom + 18, text, "tick", anchor="middle", size=11)
    canvas.line((plot.left, plot.bottom), (plot.right, plot.bottom), "axis")
    canvas.text(0, 12, told.axis_title, "axis-title")
    scale = ", logarithmic" if across.logarithmic else ""
    canvas.text(plot.right, canvas.height - 4, f"p50 latency (ms, batch {batch}{scale})", "axis-title", anchor="end")


def _whiskers(canvas: Canvas, point: EnginePoint, across: Scale, upwards: Scale, told: MetricWords) -> list[Box]:
    x, y = across(point.latency.p50_ms), upwards(told.drawn(point.score.value))
    low, high = point.score.interval.low, point.score.interval.high
    left, right = across(point.latency.p50_interval.low), across(point.latency.p50_interval.high)
    bottom, top = upwards(told.drawn(low)), upwards(told.drawn(high))
    css = f"whisker series-{point.series % 4}"
    canvas.line((x, bottom), (x, top), css)
    canvas.line((left, y), (right, y), css)
    return [Box(x - 1, top, x + 1, bottom), Box(left, y - 1, right, y + 1)]


def _labels(
    canvas: Canvas,
    points: Sequence[EnginePoint],
    dots: Sequence[tuple[float, float]],
    plot: Box,
    crossed: Sequence[Box],
    taken: Sequence[Box],
    front: Sequence[EnginePoint],
) -> None:
    room = Box(plot.left + 2, plot.top - 8, plot.right + RIGHT - 2, plot.bottom - 2)
    labels: list[Placed | None] = [None]
    if canvas.width >= NAMES_FROM:
        labels = placed_labels(
            [(*dot, each.name) for dot, each in zip(dots, points, strict=True)], room, crossed, taken
        )
    if None in labels:
        labels = placed_labels(
            [(*dot, each.short) for dot, each in zip(dots, points, strict=True)], room, crossed, taken
        )
    for point, (x, y), label in zip(points, dots, labels, strict=True):
        if label is None:
            continue
        if label.led:
            end = label.x + {"start": -2.0, "middle": 0.0, "end": 2.0}[label.anchor]
            canvas.line((x, y), (end, min(max(y, label.box.top), label.box.bottom)), "leader")
        css = "label" if point in front else "label beaten"
        canvas.text(label.x, label.y, label.text, css, anchor=label.anchor)


def _staircase(front: Sequence[tuple[float, float]], worst: float, right: float) -> list[tuple[float, float]]:
    """From the worst height; right of its corners and on their worse side, an engine would be beaten in both."""
    corners = [(front[0][0], worst), front[0]]
    for (_, before), (x, y) in pairwise(front):
        corners += [(x, before), (x, y)]
    return [*corners, (right, front[-1][1])]


def _boxes_along(points: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes strung along a line, which may run at a slant."""
    boxes: list[Box] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        pieces = max(1, round(math.hypot(x2 - x1, y2 - y1) / PIECE))
        for piece in range(pieces + 1):
            x, y = x1 + (x2 - x1) * piece / pieces, y1 + (y2 - y1) * piece / pieces
            boxes.append(Box(x - 1, y - 1, x + 1, y + 1))
    return boxes


def _description(points: Sequence[EnginePoint], told: MetricWords) -> str:
    unit = " percent" if told.is_share else f" {told.metric.name}"
    listed = "; ".join(
        f"{point.name}: {told.figure(point.score.value)}{unit} at {point.latency.p50_ms:.3g} ms" for point in points
    )
    return f"Engines with 95 % intervals, and the Pareto front. {listed}."
