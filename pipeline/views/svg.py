"""Drawing in SVG, with the room that each text takes known, so that none is put over another."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree

Anchor = Literal["start", "middle", "end"]

FONT_SIZE = 12.0
_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[]-/ "), frozenset("mwMW%@—×")


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """An upper estimate in pixels, right for the widest of the usual sans serif fonts (DejaVu, Verdana)."""
    return size * sum(0.42 if each in _NARROW else 0.98 if each in _WIDE else 0.66 for each in text)


def shortened(text: str, room: float, size: float = FONT_SIZE) -> str:
    """The text, cut in its middle where it is wider than `room` pixels: names differ at both ends."""
    if text_width(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = f"{text[: math.ceil(kept / 2)]}…{text[len(text) - kept // 2 :]}"
        if text_width(cut, size) <= room:
            return cut
    return "…"


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box", margin: float = 0.0) -> bool:
        """Whether both share an area, or come nearer than `margin`."""
        return (
            self.left < other.right + margin
            and other.left < self.right + margin
            and self.top < other.bottom + margin
            and other.top < self.bottom + margin
        )

    def holds(self, other: "Box") -> bool:
        """Whether the other lies within."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def text_box(x: float, y: float, text: str, size: float = FONT_SIZE, anchor: Anchor = "start") -> Box:
    """The room of a text whose baseline begins, is centred or ends at (x, y)."""
    width = text_width(text, size)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return Box(left, y - 0.8 * size, left + width, y + 0.25 * size)


@dataclass
class Canvas:
    """A drawing that says in words what it shows, and remembers where its texts are."""

    width: float
    height: float
    title: str
    description: str
    key: str
    """Begins every id in the drawing; unlike any other's on the page."""
    texts: list[Box] = field(default_factory=list[Box])
    _root: ElementTree.Element = field(init=False)

    def __post_init__(self) -> None:
        title, description = f"{self.key}-title", f"{self.key}-description"
        self._root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {_number(self.width)} {_number(self.height)}",
                "width": _number(self.width),
                "height": _number(self.height),
                "role": "img",
                "aria-labelledby": f"{title} {description}",
            },
        )
        ElementTree.SubElement(self._root, "title", {"id": title}).text = self.title
        ElementTree.SubElement(self._root, "desc", {"id": description}).text = self.description

    def text(
        self,
        x: float,
        y: float,
        text: str,
        css: str = "",
        *,
        anchor: Anchor = "start",
        size: float = FONT_SIZE,
        full: str = "",
    ) -> Box:
        """Write at a baseline; `full` is what a shortened text stands for."""
        element = self._add("text", css, x=x, y=y)
        element.set("text-anchor", anchor)
        element.set("font-size", _number(size))
        element.text = text
        if full and full != text:
            ElementTree.SubElement(element, "title").text = full
        box = text_box(x, y, text, size, anchor)
        self.texts.append(box)
        return box

    def line(self, start: tuple[float, float], end: tuple[float, float], css: str) -> None:
        """A straight line."""
        self._add("line", css, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def rectangle(self, box: Box, css: str) -> None:
        """A filled box."""
        self._add("rect", css, x=box.left, y=box.top, width=box.right - box.left, height=box.bottom - box.top)

    def circle(self, x: float, y: float, radius: float, css: str) -> None:
        """A dot."""
        self._add("circle", css, cx=x, cy=y, r=radius)

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """Straight lines from point to point."""
        element = self._add("polyline", css)
        element.set("points", " ".join(f"{_number(x)},{_number(y)}" for x, y in points))

    def markup(self) -> str:
        """As it stands in a page."""
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, css: str, **numbers: float) -> ElementTree.Element:
        element = ElementTree.SubElement(self._root, tag, {name: _number(value) for name, value in numbers.items()})
        if css:
            element.set("class", css)
        return element


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Scale:
    """From values to pixels, straight or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    """The pixels of `low` and `high`."""
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (self._bent(each) for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _bent(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def ticks(self, most: int) -> list[float]:
        """At most about `most` round values within."""
        if self.logarithmic and self.high / self.low > 4:
            return _logarithmic_ticks(self.low, self.high, most)
        return _even_ticks(self.low, self.high, most)


def scale_over(values: Iterable[float], start: float, end: float, *, logarithmic: bool = False) -> Scale:
    """A scale that shows all values with some room around them."""
    known = list(values)
    low, high = min(known), max(known)
    if logarithmic:
        room = max((high / low) ** 0.06, 1.02)
        return Scale(low / room, high * room, start, end, logarithmic=True)
    room = max((high - low) * 0.06, abs(high) * 1e-3, 1e-9)
    return Scale(low - room, high + room, start, end)


def _even_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _logarithmic_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [round(tick, 12) for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _power(tick: float) -> str:
    digits, _, power = f"{tick:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}".replace("-", "−")


def tick_texts(ticks: Sequence[float], *, logarithmic: bool = False) -> list[str]:
    """With as many decimals as tell the ticks apart; with powers of ten where they are tiny or lie far apart."""
    if logarithmic and any(tick < 1e-3 or tick >= 1e5 for tick in ticks):
        return [f"{tick:g}" if 1e-3 <= tick < 1e5 else _power(tick) for tick in ticks]
    if 0 < max(map(abs, ticks), default=0) < 1e-3:
        return [_power(tick) if tick else "0" for tick in ticks]
    decimals = max((len(f"{tick:.6f}".rstrip("0").partition(".")[2]) for tick in ticks), default=0)
    return [f"{tick:.{decimals}f}".replace("-", "−") for tick in ticks]
