"""Which channels must go together, as plain values, and what a choice among them leaves of each layer."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from torch import nn

from .channels import Channels, Kept, all_channels

NAMED_AT_MOST = 12
"""Layers that one sentence names; a long residual stream runs through dozens."""


@dataclass(frozen=True)
class Member:
    """One layer of a group, or a parameter outside of any layer, and which of its channels go with which unit."""

    path: str
    reads: bool
    writes: bool
    channels: tuple[int, ...]
    """Positions in the layer."""
    roots: tuple[int, ...]
    """For each of them, the unit of the group that it goes with."""
    dim: int | None = None
    """Of a parameter or buffer outside of any layer: the dimension that has the channels."""
    scaled: bool = False
    """Whether what it writes makes up for code that divides by the root of the number of channels, as attention's
    does: its weights are multiplied by √(left / before)."""


@dataclass(frozen=True)
class Counted:
    """An integer that code reads from a module, as the number of heads, and that falls with each unit removed."""

    path: str
    value: int
    per_unit: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together."""

    members: tuple[Member, ...]
    num_channels: int
    """Of the first layer."""
    parts: int
    """How many of these go with each unit, one from each of so many equal parts, as the groups of a grouped
    convolution or the heads of attention; mostly 1."""
    number: int = 1
    """Tells groups apart whose first layers are the same."""
    otherwise: "ChannelGroup | None" = None
    """What to try where this cannot be proven."""
    heads: bool = False
    """Whether its units are whole heads of attention."""
    counted: tuple[Counted, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that lose outputs."""
        return tuple(dict.fromkeys(member.path for member in self.members if member.writes))

    @property
    def name(self) -> str:
        """The first of the layers; with a number where that has several groups."""
        return self.layers[0] if self.number == 1 else f"{self.layers[0]} ({self.number})"

    @property
    def num_units(self) -> int:
        """What can be chosen among."""
        return self.num_channels // self.parts


@dataclass(frozen=True)
class LeftAlone:
    """Layers whose channels stay, and why."""

    layers: tuple[str, ...]
    reason: str
    some: bool = False
    """Whether others of their channels can go."""

    def __str__(self) -> str:
        named = ", ".join(self.layers[:NAMED_AT_MOST])
        if len(self.layers) > NAMED_AT_MOST:
            named += f" and {len(self.layers) - NAMED_AT_MOST} more"
        verb, whose = ("keeps", "its") if len(self.layers) == 1 else ("keep", "their")
        return f"{named} {verb} {'some of ' if self.some else ''}{whose} channels: {self.reason}"


@dataclass(frozen=True)
class Grouping:
    """All channels of a model: those that can be cut, and those that stay."""

    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    outputs: frozenset[str]
    """The layers that write the network's outputs."""


def kept_channels(model: nn.Module, removals: Iterable[tuple[ChannelGroup, Iterable[int]]]) -> Kept:
    """What every layer keeps when these units of these groups are removed."""
    removed: dict[int, set[int]] = {}
    groups: dict[int, ChannelGroup] = {}
    for group, units in removals:
        groups[id(group)] = group
        removed.setdefault(id(group), set()).update(units)
    layers = all_channels(model)
    for key, group in groups.items():
        for member in group.members:
            layers[member.path] = _without(layers.get(member.path), member, removed[key], group.num_units, model)
    attributes = {
        each.path: each.value - each.per_unit * len(removed[key])
        for key, group in groups.items()
        for each in group.counted
    }
    return Kept(layers, attributes)


def _without(before: Channels | None, member: Member, removed: set[int], num_units: int, model: nn.Module) -> Channels:
    if before is None:
        assert member.dim is not None  # all layers are listed
        size = dict((*model.named_parameters(), *model.named_buffers()))[member.path].shape[member.dim]
        before = Channels((), tuple(range(size)), dim=member.dim)
    gone = {index for index, root in zip(member.channels, member.roots, strict=True) if root in removed}
    read = tuple(index for index in before.read if not (member.reads and index in gone))
    written = tuple(index for index in before.written if not (member.writes and index in gone))
    scales = dict(before.scales)
    if member.scaled:
        scales |= dict.fromkeys(member.channels, sqrt((num_units - len(removed)) / num_units))
    return Channels(read, written, dim=before.dim, scales=scales)
