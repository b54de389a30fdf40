"""Budgets and goals as lines in the chart of metric against latency."""

from collections.abc import Iterator, Sequence

from ..comparison.asked import Budget
from . import wording
from .labels import RADIUS
from .metric_words import MetricWords
from .svg import Box, Canvas, Scale, shortened, text_box, text_width

SIZE = 11.0
"""Of the letters."""
LINE = 15.0


def drawn_budgets(
    canvas: Canvas,
    plot: Box,
    scales: tuple[Scale, Scale],
    told: MetricWords,
    budgets: Sequence[Budget],
    points: Sequence[tuple[float, float]],
) -> list[Box]:
    """A line for each budget, labelled off all points (x, y) where there is room; returns the labels' boxes."""
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in points]
    across, upwards = scales
    marks = [across(each.limit) if each.is_latency else upwards(told.drawn(each.limit)) for each in budgets]
    lines = [_line(each, plot, at) for each, at in zip(budgets, marks, strict=True)]
    for line in lines:
        canvas.line((line.left, line.top), (line.right, line.bottom), "budget")
    labels: list[Box] = []
    for budget, at in zip(budgets, marks, strict=True):
        words = shortened(_words(budget, told), plot.right - plot.left - 12, SIZE)
        places = [(x, y, text_box(x, y, words, SIZE)) for x, y in _beside(budget, plot, at, text_width(words, SIZE))]
        free = [each for each in places if not _hits(each[2], [*dots, *labels])]
        # Other lines may be crossed where there is no other place.
        clear = [each for each in free if not _hits(each[2], lines)]
        if free:
            x, y, box = (clear or free)[0]
            canvas.text(x, y, words, "budget", size=SIZE)
            labels.append(box)
    return labels


def _line(budget: Budget, plot: Box, at: float) -> Box:
    if budget.is_latency:
        return Box(at, plot.top, at, plot.bottom)
    return Box(plot.left, at, plot.right, at)


def _words(budget: Budget, told: MetricWords) -> str:
    limit = f"{wording.figure(budget.limit)} ms" if budget.is_latency else told.told(budget.limit)
    return f"{budget.label} {limit}"


def _hits(box: Box, others: Sequence[Box]) -> bool:
    return any(box.overlaps(each, 1.0) for each in others)


def _beside(budget: Budget, plot: Box, at: float, width: float) -> Iterator[tuple[float, float]]:
    """Where the label may begin: along an upright line from the bottom up, along a level one from the right."""
    if not budget.is_latency:
        for y in (at - 5, at + LINE - 2):
            if plot.top + SIZE <= y <= plot.bottom - 2:
                for share in (0.0, 0.25, 0.5, 0.75, 1.0):
                    yield plot.right - width - share * (plot.right - plot.left - width), y
        return
    y = plot.bottom - 8
    while y > plot.top + SIZE:
        for x in (at + 5, at - 5 - width):
            if plot.left <= x and x + width <= plot.right:
                yield x, y
        y -= LINE
