"""Formulas of distributions, one number after the other, for tests to compare with."""

import math
from collections.abc import Sequence

Numbers = Sequence[float]


def softmax(logits: Numbers, temperature: float = 1.0) -> list[float]:
    """exp(z/T) over their sum."""
    top = max(logits)
    powers = [math.exp((z - top) / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(wanted: Numbers, given: Numbers) -> float:
    """KL(wanted ‖ given)."""
    return sum(p * (math.log(p) - math.log(q)) for p, q in zip(wanted, given, strict=True))


def without(values: Numbers, index: int) -> list[float]:
    """All but the one at `index`."""
    return [value for at, value in enumerate(values) if at != index]


def mean(values: Numbers) -> float:
    """Their arithmetic mean."""
    return sum(values) / len(values)


def deviation(values: Numbers) -> float:
    """The standard deviation with n - 1 below."""
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1))


def pearson(first: Numbers, second: Numbers) -> float:
    """The correlation of two rows."""
    a, b = [x - mean(first) for x in first], [y - mean(second) for y in second]
    spread = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / spread
