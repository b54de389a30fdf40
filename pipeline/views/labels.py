"""Finding a place for each label beside its point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .svg import FONT_SIZE, Anchor, Box, text_box

RADIUS = 5.0
RINGS = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0)
"""Distances of labels from their points, in pixels; the farther ones get a line that leads to the point."""
LED_FROM = 20.0
DIRECTIONS = ((1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.7), (-0.8, -0.7), (0.8, 0.7), (-0.8, 0.7))
CROSSING_COST = 12.0
"""What it costs to lie over a line that is no text, in pixels of distance."""


@dataclass(frozen=True)
class Placed:
    """Where a label goes."""

    text: str
    x: float
    y: float
    anchor: Anchor
    box: Box
    led: bool
    """Whether it is so far from its point that a line should lead there."""


def placed_labels(
    points: Sequence[tuple[float, float, str]], within: Box, crossed: Sequence[Box] = (), taken: Sequence[Box] = ()
) -> list[Placed | None]:
    """A place for each (x, y, text): off all points, other labels and `taken`, and off `crossed` where that is near.

    None where there is no such place.
    """
    dots = [Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y, _ in points]
    blocked = [*dots, *taken]
    found: list[Placed | None] = []
    for x, y, text in points:
        free = [
            (cost + CROSSING_COST * any(label.box.overlaps(box) for box in crossed), label)
            for cost, label in _candidates(x, y, text)
            if within.holds(label.box) and not any(label.box.overlaps(box, 1.0) for box in blocked)
        ]
        best = min(free, key=lambda candidate: candidate[0], default=(0.0, None))[1]
        found.append(best)
        if best is not None:
            blocked.append(best.box)
    return found


def _candidates(x: float, y: float, text: str) -> Iterator[tuple[float, Placed]]:
    for distance in RINGS:
        for rank, (right, down) in enumerate(DIRECTIONS):
            anchor: Anchor = "start" if right > 0 else "end" if right < 0 else "middle"
            at_x = x + right * distance
            # A label's middle, not its baseline, is what lies in the direction.
            at_y = y + down * (distance + FONT_SIZE / 3) + FONT_SIZE / 3
            box = text_box(at_x, at_y, text, FONT_SIZE, anchor)
            yield distance + rank, Placed(text, at_x, at_y, anchor, box, distance > LED_FROM)
