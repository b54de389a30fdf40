"""How many channels have to go: the order in which they leave, and the search for the point that meets the budget."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .graph import Group


@dataclass(frozen=True)
class Bite:
    """The next channels to leave one group, in every block of it."""

    group: Group
    channels: tuple[int, ...]


def bites(groups: Sequence[Group]) -> list[Bite]:
    """All channels that may go, in steps that leave every group at a multiple, cheapest first.

    A bite's price is the share of its group's importance that is lost once it is gone. Groups of even importance thus
    shrink at an even pace, those with idle channels faster, and none collapses before the others.
    """
    priced: list[tuple[float, int, Bite]] = []
    for position, group in enumerate(groups):
        if group.kept_because is not None:
            continue
        weakest_first = sorted(range(len(group.scores)), key=lambda channel: (group.scores[channel], channel))
        total, lost, start = sum(group.scores), 0.0, 0
        for left in range((len(weakest_first) - 1) // group.step * group.step, 0, -group.step):
            end = len(weakest_first) - left
            gone = weakest_first[start:end]
            lost += sum(group.scores[channel] for channel in gone)
            # Where all importance is zero, as in a network of zeros, the pace is that of the channels.
            price = lost / total if total > 0 else end / len(weakest_first)
            priced.append((price, position, Bite(group, tuple(gone))))
            start = end
    return [bite for _, _, bite in sorted(priced, key=lambda entry: entry[:2])]


def lost_channels(taken: Sequence[Bite]) -> dict[str, list[int]]:
    """The root's output channels that are gone after these bites, by root."""
    lost: dict[str, list[int]] = {}
    for bite in taken:
        lost[bite.group.root] = sorted([*lost.get(bite.group.root, []), *bite.group.channels(bite.channels)])
    return lost


def smallest_sufficient(order: Sequence[Bite], kept: Callable[[Mapping[str, list[int]]], float], share: float) -> int | None:
    """The fewest leading bites after which `kept` is at most `share`, by bisection; None where all are too few."""
    if kept(lost_channels(order)) > share:
        return None
    low, high = 0, len(order)
    while low + 1 < high:
        middle = (low + high) // 2
        if kept(lost_channels(order[:middle])) <= share:
            high = middle
        else:
            low = middle
    return high
