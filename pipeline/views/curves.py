"""Training curves: the loss, the terms it is made of, their shares of the gradient, and accuracy on validation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from ..report import StepReport
from . import wording
from .metric_words import MetricWords
from .svg import Box, Canvas, Scale, scale_over, shortened, text_width, tick_texts
from .terms import Term, share_text, terms_of

LEAST_LEFT, TOP = 44.0, 24.0
MOST_LABELS = 140.0
"""The widest that the labels at the lines' ends may get, in pixels."""
LOSS, SHARES, VALIDATION = 110.0, 84.0, 62.0
"""The least height of each panel."""
HEIGHT_PER_LINE = 18.0
"""More than a label's, for many lines to lie apart."""
GAP, BOTTOM = 34.0, 34.0
LABEL_HEIGHT = 14.0
LOGARITHMIC_FROM = 20.0
NEGLIGIBLE = 1e-8
"""Of the largest value: what is below this share of it stands with the zeros, where a logarithm has no place for it."""
ZERO_HEIGHT = 16.0
"""Between the zeros and the smallest value above them on a logarithmic scale, in pixels."""
LINE_STYLES = 8
"""How many terms the style sheet tells apart, by colour and dashes."""


@dataclass(frozen=True)
class _Line:
    name: str
    values: tuple[tuple[float, float], ...]
    """Epoch and value."""
    style: str


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: tuple[_Line, ...]
    least_height: float
    parts: bool = False
    """Of a whole: on an even scale from zero."""
    told: Callable[[float], str] = wording.figure
    """The value at a line's end, in words."""

    @property
    def height(self) -> float:
        return max(self.least_height, HEIGHT_PER_LINE * len(self.lines))


@dataclass(frozen=True)
class _Upwards:
    """From values to pixels; on a logarithmic scale, zeros have a place of their own below it."""

    scale: Scale
    least: float
    """What is below stands with the zeros."""
    zero: float | None
    """Where they stand; None where the scale itself has a place for them."""

    def __call__(self, value: float) -> float:
        return self.zero if self.zero is not None and value < self.least else self.scale(value)


@dataclass(frozen=True)
class _Axis:
    """A panel's height in the drawing, and its scale there."""

    upwards: _Upwards
    ticks: tuple[tuple[float, str], ...]
    """Height and text."""
    top: float
    bottom: float


def training_curves(step: StepReport, width: float, key: str) -> Canvas:
    """One step's training; only for a step that has a curve."""
    panels = list(_panels(step))
    height = TOP + sum(panel.height for panel in panels) + GAP * (len(panels) - 1) + BOTTOM
    canvas = Canvas(width, height, f"Training of {step.name}", _description(step), key)
    labels = (f"0.0000 {line.name}" for panel in panels for line in panel.lines)
    right = width - 14 - min(MOST_LABELS, max(text_width(label, 11) for label in labels))
    axes: list[_Axis] = []
    for panel in panels:
        axes.append(_axis(panel, axes[-1].bottom + GAP if axes else TOP))
    left = max((LEAST_LEFT, *(6 + text_width(text, 11) for axis in axes for _, text in axis.ticks)))
    epochs = _epochs(step, left, right)
    for panel, axis in zip(panels, axes, strict=True):
        _draw(canvas, panel, axis, epochs, left)
    _epoch_axis(canvas, epochs, left, axes[-1].bottom)
    return canvas


def _panels(step: StepReport) -> Iterator[_Panel]:
    terms = terms_of(step)
    yield _Panel("Loss", tuple(_loss_lines(step, terms)), LOSS)
    if terms and terms[0].shares:
        lines = (
            _Line(term.name, tuple((epoch, 100 * share) for epoch, share in term.shares), style)
            for term, style in zip(terms, _styles(), strict=False)
        )
        yield _Panel("Share of the gradient (%)", tuple(lines), SHARES, parts=True, told="{:.1f}".format)
    told = MetricWords.of([step.engine.score])
    validation = tuple((each.epoch, told.drawn(each.validation)) for each in step.curve if each.validation is not None)
    if validation:
        unit = " (%)" if told.is_share else ""
        yield _Panel(f"{told.title} on the validation split{unit}", (_Line("", validation, "total"),), VALIDATION)


def _loss_lines(step: StepReport, terms: Sequence[Term]) -> Iterator[_Line]:
    """The total first; a single term is the total and is not drawn twice."""
    alone = next((name for each in step.curve for name in each.terms), "loss")
    yield _Line("total" if terms else alone, tuple((each.epoch, each.loss) for each in step.curve), "total")
    for term, style in zip(terms, _styles(), strict=False):
        yield _Line(term.name, term.values, style)


def _styles() -> Iterator[str]:
    """A term looks alike in every panel."""
    return (f"term-{index % LINE_STYLES}" for index in count())


def _epochs(step: StepReport, left: float, right: float) -> Scale:
    first, last = step.curve[0].epoch, step.curve[-1].epoch
    if first == last:
        first, last = first - 0.5, last + 0.5
    return Scale(first, last, left + 6, right - 6)


def _axis(panel: _Panel, top: float) -> _Axis:
    bottom = top + panel.height
    values = [value for line in panel.lines for _, value in line.values]
    upwards = (_from_zero if panel.parts else _upwards)(values, top + 10, bottom - 4)
    values = upwards.scale.ticks(max(3, int(panel.height / 26)))
    texts = tick_texts(values, logarithmic=upwards.scale.logarithmic)
    ticks = [(upwards.scale(value), text) for value, text in zip(values, texts, strict=True)]
    if upwards.zero is not None:
        ticks.append((upwards.zero, "0"))
    return _Axis(upwards, tuple(ticks), top, bottom)


def _draw(canvas: Canvas, panel: _Panel, axis: _Axis, epochs: Scale, left: float) -> None:
    upwards = axis.upwards
    title = panel.title + (", logarithmic" if upwards.scale.logarithmic else "")
    canvas.text(0, axis.top - 8, title, "axis-title", size=11)
    for height, text in axis.ticks:
        canvas.line((left, height), (epochs.end + 6, height), "grid")
        canvas.text(left - 6, height + 4, text, "tick", anchor="end", size=11)
    for line in reversed(panel.lines):
        points = [(epochs(epoch), upwards(value)) for epoch, value in line.values]
        canvas.path(points, f"curve {line.style}")
        if len(points) == 1 or line.style == "total":
            canvas.circle(*points[-1], 3, f"dot {line.style}")
    _end_labels(canvas, panel, upwards, epochs.end + 14, Box(0, axis.top, canvas.width, axis.bottom + 2))


def _from_zero(values: Sequence[float], top: float, bottom: float) -> _Upwards:
    return _Upwards(Scale(0, max(values) or 1, bottom, top), 0, None)


def _upwards(values: Sequence[float], top: float, bottom: float) -> _Upwards:
    """Logarithmic where the values lie far apart and none of them is below zero by more than a rounding."""
    least = NEGLIGIBLE * max(values)
    above = [value for value in values if value >= least > 0]
    if not above or min(values) <= -least or max(above) / min(above) <= LOGARITHMIC_FROM:
        return _Upwards(scale_over(values, bottom, top), least, None)
    if len(above) == len(values):
        return _Upwards(scale_over(values, bottom, top, logarithmic=True), least, None)
    return _Upwards(scale_over(above, bottom - ZERO_HEIGHT, top, logarithmic=True), least, bottom)


def _end_labels(canvas: Canvas, panel: _Panel, upwards: _Upwards, left: float, within: Box) -> None:
    """The last value and the name of each line at its end, moved apart where the ends are close."""
    ends = sorted(((upwards(line.values[-1][1]), line) for line in panel.lines), key=lambda end: end[0])
    heights = _apart([y for y, _ in ends], within.top + LABEL_HEIGHT, within.bottom)
    for (y, line), height in zip(ends, heights, strict=True):
        value = panel.told(line.values[-1][1])
        name = shortened(line.name, canvas.width - left - text_width(value + " ", 11), 11)
        if abs(height - y) > 4:
            canvas.line((left - 8, y), (left - 2, height - 4), "leader")
        text, full = f"{value} {name}".strip(), f"{value} {line.name}".strip()
        canvas.text(left, height, text, f"label {line.style}", size=11, full=full)


def _apart(heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Rising baselines near the given heights, a label apart, within the bounds as far as there is room."""
    moved: list[float] = []
    for height in heights:
        least = moved[-1] + LABEL_HEIGHT if moved else top
        moved.append(max(height + 4, least))
    excess = max(0.0, moved[-1] - bottom)
    for index in range(len(moved) - 1, -1, -1):
        limit = moved[index + 1] - LABEL_HEIGHT if index + 1 < len(moved) else moved[index] - excess
        moved[index] = min(moved[index], limit)
    return moved


def _epoch_axis(canvas: Canvas, epochs: Scale, left: float, bottom: float) -> None:
    canvas.line((left, bottom), (epochs.end + 6, bottom), "axis")
    whole = [tick for tick in epochs.ticks(6) if tick == int(tick)]
    for tick in whole:
        canvas.text(epochs(tick), bottom + 16, f"{tick:.0f}", "tick", anchor="middle", size=11)
    canvas.text(epochs.end + 14, bottom + 16, "epoch", "tick", size=11)


def _description(step: StepReport) -> str:
    first, last = step.curve[0], step.curve[-1]
    validation = "no validation split"
    if last.validation is not None:
        told = MetricWords.of([step.engine.score])
        figure = (
            f"{100 * last.validation:.2f} percent" if told.is_share else f"{told.metric.name} {last.validation:.4g}"
        )
        validation = f"validation {figure}"
    text = f"Loss from {first.loss:.4g} to {last.loss:.4g} over {last.epoch:g} epochs, {validation} at the end."
    shares = [f"{term.name} {share_text(term.mean_share)}" for term in terms_of(step) if term.shares]
    return f"{text} Mean share of the gradient in percent: {', '.join(shares)}." if shares else text
