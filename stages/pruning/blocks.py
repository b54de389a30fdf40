"""The order in which channels go: blocks of each group, and what it costs to lose them."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import gcd
from typing import Literal

from torch import nn

from .groups import ChannelGroup
from .importance import Criterion, Scored

Scope = Literal["global", "uniform", "isomorphic", "sensitivity"]
"""Among which channels importances are compared. `global`: all, each relative to its group. `uniform`: those of one
group, so that every group loses the same share. `isomorphic`: those of groups that are built alike, so that each kind
loses the same share (Fang et al. 2024, arXiv 2407.04616). `sensitivity`: all, by how much the loss rises when that
group alone is cut so far (Li et al. 2017, arXiv 1608.08710)."""


@dataclass(frozen=True)
class Block:
    """Channels of one group that are removed in one step, so that counts stay multiples of what kernels like."""

    group: ChannelGroup
    units: tuple[int, ...]
    price: float
    """What it costs to remove the group's blocks up to this one; blocks go in the order of their prices."""


def blocks(found: Sequence[Scored], round_to: int, criterion: Criterion) -> list[Block]:
    """All blocks of all groups, the cheapest first; each group keeps its best `round_to` channels or more.

    The price is the share of its group's importance that is lost once the block is gone: groups of even importance
    shrink at an even pace, those with idle channels faster, and none collapses before the others. For `lamp` it is the
    block's share of what was left of its group before. A group whose count is no multiple of `round_to` loses the odd
    channels first.
    """
    made = [block for each in found for block in _blocks_of(each, round_to, of_what_is_left=criterion == "lamp")]
    return sorted(made, key=lambda block: block.price)  # stable: the price rises along a group's own blocks


def _blocks_of(scored: Scored, round_to: int, *, of_what_is_left: bool) -> list[Block]:
    group, scores = scored.group, scored.scores
    step = round_to // gcd(round_to, group.parts)
    order = sorted(range(len(scores)), key=lambda unit: scores[unit])
    total, lost = sum(scores), 0.0
    found: list[Block] = []
    start, size = 0, len(order) % step or step
    while len(order) - start - size >= step:
        units = tuple(order[start : start + size])
        own = sum(scores[unit] for unit in units)
        price = own / max(total - lost, own, 1e-12) if of_what_is_left else (lost + own) / total
        lost += own
        start, size = start + size, step
        found.append(Block(group, units, price))
    return _rising(found)


def _rising(found: Sequence[Block]) -> list[Block]:
    """The blocks of one group at prices that never fall, so that sorting keeps their order."""
    prices = accumulate((block.price for block in found), max)
    return [replace(block, price=price) for block, price in zip(found, prices, strict=True)]


def evenly(ordered: Iterable[Block], kind: Callable[[ChannelGroup], Hashable]) -> list[Block]:
    """The blocks priced by the share of the channels of their kind of group that is gone with them."""
    listed = list(ordered)
    totals: Counter[Hashable] = Counter()
    for group in {id(block.group): block.group for block in listed}.values():
        totals[kind(group)] += group.num_units
    gone: Counter[Hashable] = Counter()
    priced: list[Block] = []
    for block in listed:
        gone[kind(block.group)] += len(block.units)
        priced.append(replace(block, price=gone[kind(block.group)] / totals[kind(block.group)]))
    return sorted(priced, key=lambda block: block.price)


def structure(model: nn.Module) -> Callable[[ChannelGroup], Hashable]:
    """Tells groups of `model` apart by which layers write and read their channels, not by their sizes."""

    def kind(group: ChannelGroup) -> Hashable:
        members = Counter(
            (type(layer).__name__, getattr(layer, "kernel_size", None), member.reads, member.writes)
            for member in group.members
            if member.dim is None
            for layer in (model.get_submodule(member.path),)
        )
        return frozenset(members.items())

    return kind


def by_rise(ordered: Iterable[Block], rises: Mapping[str, Sequence[tuple[float, float]]]) -> list[Block]:
    """The blocks priced by what their group's loss rises to, from measured (share of units gone, rise) points.

    `rises` is by the group's name, its points by rising share; between two points the price is on their line.
    """
    gone: Counter[str] = Counter()
    by_group: dict[str, list[Block]] = {}
    for block in ordered:
        name = block.group.name
        gone[name] += len(block.units)
        price = _between([(0.0, 0.0), *rises[name]], gone[name] / block.group.num_units)
        by_group.setdefault(name, []).append(replace(block, price=price))
    return sorted((block for own in by_group.values() for block in _rising(own)), key=lambda block: block.price)


def _between(points: Sequence[tuple[float, float]], share: float) -> float:
    after = min(max(bisect_left([each for each, _ in points], share), 1), len(points) - 1)
    (low, at_low), (high, at_high) = points[after - 1], points[after]
    return at_low + (at_high - at_low) * (share - low) / (high - low)
