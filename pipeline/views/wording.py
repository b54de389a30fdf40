"""Numbers in words: the same unit, sign and precision in every view."""

import math
from collections.abc import Iterable

from ...export.measurement import Interval

MINUS = "−"
TIMES = "×"
SIGNIFICANT_DIGITS = 3


def signed(value: float, decimals: int) -> str:
    """With its sign, a zero without one."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def plain(value: float, decimals: int) -> str:
    """With a proper minus and thousands separated."""
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def percent(share: float) -> str:
    """Such as ``98.33``; the unit stands in the column's head."""
    return f"{100 * share:.2f}"


def ratio(value: float | None) -> str:
    """Such as ``8.41×``, for a column."""
    return "–" if value is None else f"{value:,.2f}{TIMES}"


def ratio_in_words(value: float | None) -> str:
    """To three digits, such as ``8.41×`` or ``69.5×``."""
    return "–" if value is None else f"{plain(value, min(2, decimals_for([value])))}{TIMES}"


def interval(values: Interval, decimals: int, scale: float = 1.0) -> str:
    """Both ends, such as ``0.349 to 0.361``: a dash would look like a minus."""
    return f"{plain(values.low * scale, decimals)} to {plain(values.high * scale, decimals)}"


def decimals_for(values: Iterable[float]) -> int:
    """How many decimals show the smallest value to three digits, so that a column's decimal points stay in line."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    return min(4, max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(smallest))))


def figure(value: float) -> str:
    """To three digits however large or small, such as ``0.0417``, ``137`` or ``3.1e−5``."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits}e{int(power)}".replace("-", MINUS)
    return plain(value, max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value)))))


def size(num_bytes: int) -> str:
    """In decimal units, such as ``92.4 kB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} bytes"


def kilobytes(num_bytes: int) -> str:
    """Of 1,000 bytes, for a column."""
    return plain(num_bytes / 1e3, 1)


def megabytes(num_bytes: int) -> str:
    """Of a million bytes, for a column."""
    return plain(num_bytes / 1e6, 1)


def sentence_list(parts: Iterable[str]) -> str:
    """Such as ``a, b and c``."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
