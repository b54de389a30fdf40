"""Which images are trained on, chosen on and measured on, and what occurs twice among them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import demand_rest, stratified
from ..errors import DataError
from .pictures import Pictures
from .storage import digests_of

NAMES_SHOWN = 100
"""How many images a message lists."""


@dataclass(frozen=True)
class Labelled:
    """Images of one split and what they show."""

    pictures: Pictures
    target: NDArray[Any]
    """Class numbers, or whatever else the task learns: one a picture."""
    origin: str
    """Where they were read, for messages."""
    digests: tuple[str, ...]
    """sha256 of each encoded image; empty texts for those that cannot be read."""

    @classmethod
    def of(cls, pictures: Pictures, target: NDArray[Any], origin: str) -> "Labelled":
        """Reads every image once."""
        return cls(pictures, target, origin, digests_of(pictures))

    def at(self, positions: NDArray[np.int64], origin: str) -> "Labelled":
        """Some of them, in this order."""
        digests = tuple(self.digests[int(position)] for position in positions)
        return Labelled(self.pictures.at(positions), self.target[positions], origin, digests)


def held_out(samples: Labelled, count: int) -> tuple[Labelled, Labelled]:
    """What is left to train on, and `count` distinct images, each class in its share, to choose on."""
    demand_rest(samples.origin, count, len(samples.target))
    rest, aside = _divided(samples, count)
    return samples.at(rest, samples.origin), samples.at(aside, f"{samples.origin}, held out")


def with_test_share(samples: Labelled, share: float) -> tuple[Labelled, Labelled]:
    """What is left to train on, and a share of the distinct images, of each class alike, to measure on."""
    distinct = len(_firsts(samples.digests))
    count = round(share * distinct)
    if not 2 <= count <= distinct - 2:
        raise DataError(
            f"{samples.origin}: `test: {share:g}` of {distinct} images leaves {distinct - count} to train on and "
            f"{count} to measure on; give more images, or another share"
        )
    rest, aside = _divided(samples, count)
    return samples.at(rest, f"{samples.origin}, but for the test's"), samples.at(aside, f"{samples.origin}, {share:g}")


def _divided(samples: Labelled, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions left and positions put aside; copies of an image go with it."""
    firsts = _firsts(samples.digests)
    positions = np.array(sorted(set(firsts.values())))
    chosen, _ = stratified(torch.as_tensor(samples.target[positions]), count)
    aside = {int(position) for position in positions[chosen.numpy()]}
    is_aside = np.array([firsts[each] in aside for each in _named_apart(samples.digests)])
    return np.flatnonzero(~is_aside), np.flatnonzero(is_aside)


def _firsts(digests: tuple[str, ...]) -> dict[str, int]:
    """Where each distinct image occurs first."""
    firsts: dict[str, int] = {}
    for position, digest in enumerate(_named_apart(digests)):
        firsts.setdefault(digest, position)
    return firsts


def _named_apart(digests: tuple[str, ...]) -> list[str]:
    """Images that cannot be read are no copies of each other."""
    return [digest or f"unread {position}" for position, digest in enumerate(digests)]


def misleading_copies(splits: Mapping[str, Labelled]) -> list[str]:
    """Images that occur in two splits, or under two labels, as lines ``a = b``."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, samples in splits.items():
        for position, digest in enumerate(samples.digests):
            places[digest].append((name, position))
    return [line for found in places.values() for line in _misleading(found, splits)]


def _misleading(found: list[tuple[str, int]], splits: Mapping[str, Labelled]) -> Iterator[str]:
    (name, position), *others = found
    first = splits[name]
    for other_name, other_position in others:
        other = splits[other_name]
        if other_name != name or other.target[other_position] != first.target[position]:
            yield f"{first.pictures.name(position)} = {other.pictures.name(other_position)}"


def listed(lines: list[str]) -> str:
    """The first ones, each in a line of its own, and how many more there are."""
    more = [f"… and {len(lines) - NAMES_SHOWN} more"] if len(lines) > NAMES_SHOWN else []
    return "\n  ".join(["", *lines[:NAMES_SHOWN], *more])
