"""A task's metric in words and figures: shares in percent and points, other metrics as they are."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ...export.measurement import Interval, Score, ScoreChange
from ..metric import Metric
from . import wording
from .tables import Cell, Column, Tone, figures

DIGITS = 4
"""Of the smallest value among those that stand together."""
MOST_DECIMALS = 8


@dataclass(frozen=True)
class MetricWords:
    """How one metric is told in one report."""

    metric: Metric
    decimals: int
    """Of a figure; of shares, of one in percent."""

    @classmethod
    def of(cls, scores: Iterable[Score]) -> Self:
        """For scores of one metric that are to be read beside each other; there must be one."""
        found = tuple(scores)
        metric = found[0].metric
        if metric.kind == "share":
            return cls(metric, 2)
        smallest = min((abs(score.value) for score in found if score.value), default=1.0)
        return cls(metric, min(MOST_DECIMALS, max(0, DIGITS - 1 - math.floor(math.log10(smallest)))))

    @property
    def is_share(self) -> bool:
        """Whether it is told in percent."""
        return self.metric.kind == "share"

    @property
    def title(self) -> str:
        """The metric's name at the beginning of a line."""
        return self.metric.name[0].upper() + self.metric.name[1:]

    @property
    def direction(self) -> str:
        """Such as ``lower is better``."""
        return "higher is better" if self.metric.higher_is_better else "lower is better"

    @property
    def unit(self) -> str:
        """Of a column: a percent sign, or which way is better."""
        return "%" if self.is_share else self.direction

    @property
    def axis_title(self) -> str:
        """With the unit."""
        return f"{self.title} ({self.unit})"

    def column(self, title: str = "") -> Column:
        """A column of values."""
        return figures(title or self.title, self.unit)

    def change_column(self, title: str = "", unit: str = "") -> Column:
        """A column of changes."""
        told = "points" if self.is_share else "change"
        return figures(title or self.title, f"{told}, {unit}" if unit else told)

    def drawn(self, value: float) -> float:
        """A value or change as axes show it."""
        return 100 * value if self.is_share else value

    def figure(self, value: float) -> str:
        """A value without its unit."""
        return wording.plain(self.drawn(value), self.decimals)

    def told(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.figure(value)} %" if self.is_share else self.figure(value)

    def cell(self, score: Score) -> Cell:
        """A value with its interval."""
        return Cell(self.figure(score.value), wording.interval(score.interval, self.decimals, self.drawn(1.0)))

    def change(self, value: float) -> str:
        """A change with its sign, without its unit; changes that are told from chance may be small."""
        return wording.signed(self.drawn(value), self.decimals + (0 if self.is_share else 1))

    def change_told(self, value: float) -> str:
        """Likewise with its unit."""
        return f"{self.change(value)} points" if self.is_share else self.change(value)

    def change_interval(self, values: Interval) -> str:
        """Both ends, signed."""
        return f"{self.change(values.low)} to {self.change(values.high)}"

    def change_cell(self, change: ScoreChange, *, with_unit: bool = False) -> Cell:
        """A change with its interval, and whether it may be chance."""
        noise = "" if change.significant else ", noise"
        text = self.change_told(change.value) if with_unit else self.change(change.value)
        return Cell(text, self.change_interval(change.interval) + noise, tone_of_change(change))

    def change_in_words(self, change: ScoreChange) -> str:
        """Such as ``0.56 points less accurate`` or ``RMSE 0.0031 lower (better)``."""
        size = self.change(abs(change.value)).lstrip("+")
        if float(size.replace(",", "")) == 0:
            return f"the same {self.metric.name}"
        noise = "" if change.significant else " (within noise)"
        if self.is_share:
            return f"{size} points {'more' if change.value > 0 else 'less'} accurate{noise}"
        judged = noise or f" ({'better' if change.improves else 'worse'})"
        return f"{self.metric.name} {size} {'higher' if change.value > 0 else 'lower'}{judged}"


def tone_of_change(change: ScoreChange) -> Tone:
    """Good or bad by the metric's own direction, where it is no noise."""
    if not change.significant:
        return "plain"
    return "good" if change.improves else "bad"
