"""The order in which channels go under a budget of latency: least importance lost for each millisecond saved."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import Literal

from torch import nn

from ...pipeline.blueprint import layer_sizes
from ...pipeline.quantization import Quantization
from ..stage import Context
from .blocks import Block, Scope
from .groups import kept_channels
from .layer_times import Table, table_of
from .search import Search

AHEAD = 16
"""How many blocks of a group may have to go together before any time is saved: 128 channels at `round_to: 8`."""

Side = Literal["reads", "writes"]
Sides = Counter[tuple[str, Side]]
"""Channels by layer and side."""


@dataclass(frozen=True)
class Timed:
    """Blocks in the order they go, and what the table says of cuts."""

    blocks: tuple[Block, ...]
    whole: Sides
    """The channels of the uncut model."""
    table: Table

    def saved_ms(self, positions: Iterable[int]) -> float:
        """What the layers take less without the blocks at these places of the order."""
        gone = Sides()
        for position in positions:
            gone.update(self._channels[position])
        return _saved(self.table, self.whole, gone)

    @cached_property
    def _channels(self) -> list[Sides]:
        return [channels_of(block) for block in self.blocks]


def timed(
    search: Search,
    scope: Scope,
    round_to: int,
    quantization: Quantization | None,
    context: Context,
    *,
    name: str,
) -> Timed:
    """The search's blocks by the time they save, where `scope` leaves the order to importance; with the table.

    `uniform` and `isomorphic` say how much each layer loses, so their order stays.
    """
    model, ordered = search.model, search.blocks
    kept = kept_channels(model, ((block.group, block.units) for block in ordered)).layers
    touched = {member.path for block in ordered for member in block.group.members}
    least = {path: (len(kept[path].read), len(kept[path].written)) for path in touched if path in kept}
    table = table_of(model, least, round_to, quantization, context, name)
    whole = whole_channels(model)
    if scope in ("uniform", "isomorphic"):
        return Timed(ordered, whole, table)
    return by_time(ordered, losses(ordered, scope), whole, table)


def channels_of(block: Block) -> Sides:
    """The channels that each layer loses with the block."""
    removed = set(block.units)
    lost = Sides()
    for member in block.group.members:
        count = sum(root in removed for root in member.roots)
        if count and member.reads:
            lost[member.path, "reads"] += count
        if count and member.writes:
            lost[member.path, "writes"] += count
    return lost


def whole_channels(model: nn.Module) -> Sides:
    """All channels of all layers."""
    found = Sides()
    for path, size in layer_sizes(model).items():
        found[path, "reads"], found[path, "writes"] = size.in_channels, size.out_channels
    return found


def losses(ordered: Iterable[Block], scope: Scope) -> list[float]:
    """What each block's removal adds to the loss, up to one factor for all of them.

    A price of `sensitivity` is what the loss has risen to, so a block costs the step from the one before it. Any other
    price is what one layer loses for each further share of its channels, so it is multiplied by the block's share, and
    by the number of layers: a residual stream saves time in all of them, and is missed in all of them.
    """
    before: dict[int, float] = {}
    found: list[float] = []
    for block in ordered:
        if scope == "sensitivity":
            found.append(max(block.price - before.get(id(block.group), 0.0), 0.0))
            before[id(block.group)] = block.price
        else:
            share = len(block.units) / block.group.num_units
            found.append(block.price * share * len(block.group.members))
    return found


def by_time(ordered: Sequence[Block], losses: Sequence[float], whole: Sides, table: Table) -> Timed:
    """The blocks in the order in which the least is lost for each millisecond that the table says is saved.

    What a block saves depends on what has gone before it, so after each choice the groups around it are looked at anew.
    Blocks of a group that save only together, since a kernel is as fast with a few channels less, are chosen together.
    The price never falls; what saves no time at all goes last.
    """
    queues: dict[int, list[_Queued]] = {}
    for block, loss in zip(ordered, losses, strict=True):
        queues.setdefault(id(block.group), []).append(_Queued(block, loss, channels_of(block)))
    around = _neighbours(queues)
    left = Sides(whole)
    found: list[Block] = []
    price = 0.0
    offers = {key: _offer(queue, left, table) for key, queue in queues.items()}
    while offers:
        key = min(offers, key=lambda each: offers[each].price)
        chosen = offers[key]
        price = max(price, chosen.price)
        for queued in queues[key][: chosen.count]:
            found.append(replace(queued.block, price=price))
            left.subtract(queued.channels)
        del queues[key][: chosen.count]
        for other in around[key] & offers.keys():
            offers[other] = _offer(queues[other], left, table)
        if not queues[key]:
            del offers[key]
    return Timed(tuple(found), whole, table)


@dataclass(frozen=True)
class _Queued:
    """A block that is still there."""

    block: Block
    loss: float
    channels: Sides


@dataclass(frozen=True)
class _Offer:
    """The blocks of a group that would go next, together."""

    price: float
    """Loss for each millisecond saved."""
    count: int


def _neighbours(queues: Mapping[int, Sequence[_Queued]]) -> dict[int, set[int]]:
    """For each group those that share a layer with it, itself among them."""
    layers = {key: {member.path for member in queue[0].block.group.members} for key, queue in queues.items()}
    return {key: {other for other in layers if layers[key] & layers[other]} for key in layers}


def _offer(queue: Sequence[_Queued], left: Sides, table: Table) -> _Offer:
    best = _Offer(inf, min(len(queue), AHEAD))
    gone, lost = Sides(), 0.0
    for count, queued in enumerate(queue[:AHEAD], 1):
        gone.update(queued.channels)
        lost += queued.loss
        saved = _saved(table, left, gone)
        if saved > 0 and lost / saved < best.price:
            best = _Offer(lost / saved, count)
    return best


def _saved(table: Table, left: Sides, gone: Sides) -> float:
    saved = 0.0
    for layer in {layer for layer, _ in gone}:
        if layer in table:
            reads, writes = left[layer, "reads"], left[layer, "writes"]
            saved += table.ms(layer, reads, writes)
            saved -= table.ms(layer, reads - gone[layer, "reads"], writes - gone[layer, "writes"])
    return saved
