"""Training curves: the loss, the terms it is made of, and accuracy on the validation split."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..report import StepReport
from . import wording
from .svg import Box, Canvas, Scale, scale_over, shortened, text_width, tick_texts

LEFT, TOP = 44.0, 24.0
MOST_LABELS = 140.0
"""The widest that the labels at the lines' ends may get, in pixels."""
LOSS, GAP, VALIDATION, BOTTOM = 110.0, 34.0, 62.0, 34.0
LABEL_HEIGHT = 14.0
LOGARITHMIC_FROM = 20.0
DASHES = 4
"""How many kinds of dashes the style sheet tells apart."""


@dataclass(frozen=True)
class _Line:
    name: str
    values: tuple[tuple[float, float], ...]
    """Epoch and value."""
    css: str


def training_curves(step: StepReport, width: float, key: str) -> Canvas:
    """One step's training; only for a step that has a curve."""
    losses = _loss_lines(step)
    validation = tuple((each.epoch, 100 * each.validation) for each in step.curve if each.validation is not None)
    height = TOP + LOSS + BOTTOM + (GAP + VALIDATION if validation else 0)
    canvas = Canvas(width, height, f"Training of {step.name}", _description(step), key)
    right = width - 14 - min(MOST_LABELS, max(text_width(f"0.0000 {line.name}", 11) for line in losses))
    epochs = _epochs(step, right)
    _panel(canvas, "Loss", losses, epochs, TOP, TOP + LOSS)
    bottom = TOP + LOSS
    if validation:
        line = _Line("", validation, "curve total")
        _panel(canvas, "Accuracy on the validation split (%)", [line], epochs, bottom + GAP, bottom + GAP + VALIDATION)
        bottom += GAP + VALIDATION
    _epoch_axis(canvas, epochs, bottom)
    return canvas


def _loss_lines(step: StepReport) -> list[_Line]:
    """The total first; a single term is the total and is not drawn twice."""
    total = _Line("total", tuple((each.epoch, each.loss) for each in step.curve), "curve total")
    names = list(dict.fromkeys(name for each in step.curve for name in each.terms))
    if len(names) < 2:
        return [_Line(names[0] if names else "loss", total.values, total.css)]
    return [total] + [
        _Line(
            name,
            tuple((each.epoch, each.terms[name]) for each in step.curve if name in each.terms),
            f"curve term-{index % DASHES}",
        )
        for index, name in enumerate(names)
    ]


def _epochs(step: StepReport, right: float) -> Scale:
    first, last = step.curve[0].epoch, step.curve[-1].epoch
    if first == last:
        first, last = first - 0.5, last + 0.5
    return Scale(first, last, LEFT + 6, right - 6)


def _panel(canvas: Canvas, title: str, lines: Sequence[_Line], epochs: Scale, top: float, bottom: float) -> None:
    values = [value for line in lines for _, value in line.values]
    logarithmic = min(values) > 0 and max(values) / min(values) > LOGARITHMIC_FROM
    upwards = scale_over(values, bottom - 4, top + 10, logarithmic=logarithmic)
    canvas.text(0, top - 8, title + (", logarithmic" if logarithmic else ""), "axis-title", size=11)
    ticks = upwards.ticks(max(3, int((bottom - top) / 26)))
    for value, text in zip(ticks, tick_texts(ticks), strict=True):
        canvas.line((LEFT, upwards(value)), (epochs.end + 6, upwards(value)), "grid")
        canvas.text(LEFT - 6, upwards(value) + 4, text, "tick", anchor="end", size=11)
    for line in reversed(lines):
        points = [(epochs(epoch), upwards(value)) for epoch, value in line.values]
        canvas.path(points, line.css)
        if len(points) == 1 or line is lines[0]:
            canvas.circle(*points[-1], 3, "dot")
    _end_labels(canvas, lines, upwards, epochs.end + 14, Box(0, top, canvas.width, bottom + 6))


def _end_labels(canvas: Canvas, lines: Sequence[_Line], upwards: Scale, left: float, within: Box) -> None:
    """The last value and the name of each line at its end, moved apart where the ends are close."""
    ends = sorted(((upwards(line.values[-1][1]), line) for line in lines), key=lambda end: end[0])
    decimals = wording.decimals_for(line.values[-1][1] for line in lines)
    heights = _apart([y for y, _ in ends], within.top + LABEL_HEIGHT, within.bottom)
    for (y, line), height in zip(ends, heights, strict=True):
        value = f"{line.values[-1][1]:.{decimals}f}"
        name = shortened(line.name, canvas.width - left - text_width(value + " ", 11), 11)
        if abs(height - y) > 4:
            canvas.line((left - 8, y), (left - 2, height - 4), "leader")
        canvas.text(
            left,
            height,
            f"{value} {name}".strip(),
            f"label {line.css.split()[-1]}",
            size=11,
            full=f"{value} {line.name}",
        )


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


def _epoch_axis(canvas: Canvas, epochs: Scale, bottom: float) -> None:
    canvas.line((LEFT, bottom), (epochs.end + 6, bottom), "axis")
    whole = [tick for tick in epochs.ticks(6) if tick == int(tick)]
    for tick in whole:
        canvas.text(epochs(tick), bottom + 16, f"{tick:.0f}", "tick", anchor="middle", size=11)
    canvas.text(epochs.end + 14, bottom + 16, "epoch", "tick", size=11)


def _description(step: StepReport) -> str:
    first, last = step.curve[0], step.curve[-1]
    validation = "no validation split" if last.validation is None else f"validation {100 * last.validation:.2f} percent"
    return f"Loss from {first.loss:.4g} to {last.loss:.4g} over {last.epoch:g} epochs, {validation} at the end."
