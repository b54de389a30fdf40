"""Which channels must go together: Torch-Pruning's dependency groups, as plain values.

Torch-Pruning only says what hangs together; judging, cutting and proving are ours.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import size_of
from ...pipeline.cost import CONVOLUTIONS, TRANSPOSED
from ...pipeline.errors import StageError
from ...pipeline.quiet import quiet
from .channels import Channels, all_channels
from .selection import shared_paths

NAMED_AT_MOST = 12
"""Layers that one sentence names; a long residual stream runs through dozens."""


@dataclass(frozen=True)
class Member:
    """One layer of a group, and which of its channels go with which channel of the group."""

    path: str
    reads: bool
    writes: bool
    channels: tuple[int, ...]
    """Positions in the layer."""
    roots: tuple[int, ...]
    """For each of them, the channel of the group that it goes with."""


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers that can only be removed together."""

    members: tuple[Member, ...]
    num_channels: int
    parts: int
    """Equal parts that must lose the same channels, one for each group of a grouped convolution; mostly 1."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that lose outputs."""
        return tuple(member.path for member in self.members if member.writes)

    @property
    def num_units(self) -> int:
        """How many channels a part has: what can be chosen among."""
        return self.num_channels // self.parts

    def channels(self, units: Iterable[int]) -> set[int]:
        """The channels of the group at these positions of its parts."""
        return {part * self.num_units + unit for unit in units for part in range(self.parts)}


@dataclass(frozen=True)
class LeftAlone:
    """Layers whose channels stay, and why."""

    layers: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        named = ", ".join(self.layers[:NAMED_AT_MOST])
        if len(self.layers) > NAMED_AT_MOST:
            named += f" and {len(self.layers) - NAMED_AT_MOST} more"
        return f"{named} {'keeps its' if len(self.layers) == 1 else 'keep their'} channels: {self.reason}"


@dataclass(frozen=True)
class Grouping:
    """All channels of a model: those that can be cut, and those that stay."""

    groups: tuple[ChannelGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    outputs: frozenset[str]
    """The layers that write the network's outputs."""


def kept_channels(model: nn.Module, removals: Iterable[tuple[ChannelGroup, Iterable[int]]]) -> dict[str, Channels]:
    """What every layer keeps when these units of these groups are removed."""
    read: dict[str, set[int]] = {}
    written: dict[str, set[int]] = {}
    for group, units in removals:
        removed = group.channels(units)
        for member in group.members:
            gone = {index for index, root in zip(member.channels, member.roots, strict=True) if root in removed}
            if member.reads:
                read.setdefault(member.path, set()).update(gone)
            if member.writes:
                written.setdefault(member.path, set()).update(gone)
    return {
        path: Channels(
            tuple(index for index in every.read if index not in read.get(path, ())),
            tuple(index for index in every.written if index not in written.get(path, ())),
        )
        for path, every in all_channels(model).items()
    }


def channel_groups(model: nn.Module, inputs: Mapping[str, Tensor], ignored: Set[str]) -> Grouping:
    """The groups of `model`, which must ask for gradients everywhere.

    Raises StageError when Torch-Pruning cannot follow the model.
    """
    groups: list[ChannelGroup] = []
    left_alone: list[LeftAlone] = []
    outputs: frozenset[str] = frozenset()
    graph = _Graph(model, inputs)
    shared = shared_paths(model)
    for raw in graph.groups():
        if isinstance(raw, LeftAlone):
            left_alone.append(raw)
            continue
        members = raw.members()
        layers = tuple(member.path for member in members if member.writes)
        if raw.reaches_output():
            outputs = outputs.union(layers)
            continue
        reason = _ignored(layers, ignored) or _shared(members, shared) or raw.problem()
        if reason:
            left_alone.append(LeftAlone(layers, reason))
        else:
            groups.append(ChannelGroup(members, raw.num_channels, raw.parts()))
    positions = {path: position for position, path in enumerate(all_channels(model))}
    groups.sort(key=lambda group: positions[group.layers[0]])
    return Grouping(tuple(groups), tuple(left_alone), outputs)


def _ignored(layers: Iterable[str], ignored: Set[str]) -> str | None:
    named = [layer for layer in layers if layer in ignored]
    return f"`ignore` names {', '.join(named)}" if named else None


def _shared(members: Iterable[Member], shared: Set[str]) -> str | None:
    named = [member.path for member in members if member.path in shared]
    return f"{', '.join(named)} shares its weights with another place in the model" if named else None


class _Graph:
    """Torch-Pruning's graph of a model. It is untyped: nothing but this class and the next one touches it."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        import torch_pruning  # pyright: ignore[reportMissingTypeStubs] # it has none

        modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
        self.paths: dict[Any, str] = {module: path for path, module in modules}
        try:
            with quiet(), torch.enable_grad():
                graph: Any = torch_pruning.DependencyGraph()
                self.graph = graph.build_dependency(model, tuple(inputs.values()), verbose=False)
        except Exception as error:
            raise StageError(
                f"Torch-Pruning cannot follow this model, so nothing can be pruned ({type(error).__name__}: {error})"
            ) from error

    def groups(self) -> "Iterator[_RawGroup | LeftAlone]":
        """A group for every layer that writes channels, or the layer where Torch-Pruning fails to follow it."""
        written: set[nn.Module] = set()
        for layer in list(self.graph.module2node):
            if layer in written or not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
                continue
            pruner: Any = self.graph.get_pruner_of_module(layer)
            channels = range(pruner.get_out_channels(layer))
            try:
                raw = _RawGroup(self, self.graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels)))
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                reason = f"Torch-Pruning cannot follow them ({type(error).__name__})"
                yield LeftAlone((self.paths[layer],), reason)
                continue
            written.update(raw.writers())
            yield raw


class _RawGroup:
    """One of Torch-Pruning's groups with all its channels."""

    def __init__(self, graph: _Graph, group: Any) -> None:
        self._graph = graph
        self._group = group
        self.num_channels = len(group[0].idxs)

    def members(self) -> tuple[Member, ...]:
        members: list[Member] = []
        for item in self._group:
            path = self._graph.paths.get(item.dep.target.module)
            if path is None:
                continue  # an operation, such as an addition
            reads, writes = self._sides(item)
            reads = reads and not _is_norm(item.dep.target.module)
            roots = tuple(-1 if root is None else int(root) for root in item.root_idxs)
            members.append(Member(path, reads, writes, tuple(map(int, item.idxs)), roots))
        return tuple(members)

    def _sides(self, item: Any) -> tuple[bool, bool]:
        graph = self._graph.graph
        return graph.is_in_channel_pruning_fn(item.dep.handler), graph.is_out_channel_pruning_fn(item.dep.handler)

    def writers(self) -> Iterator[nn.Module]:
        """The layers whose outputs are the group's channels."""
        for item in self._group:
            if self._sides(item)[1]:
                yield item.dep.target.module

    def reaches_output(self) -> bool:
        """Whether a channel of the group is one of the network's outputs."""
        return any(not item.dep.target.outputs and self._sides(item)[1] for item in self._group)

    def problem(self) -> str | None:
        """Why the group cannot be cut, before anything is tried."""
        for item in self._group:
            module = item.dep.target.module
            if isinstance(module, nn.Parameter):
                return "a parameter outside of any layer goes with them"
            path = self._graph.paths.get(module)
            if path is None:
                continue
            size = size_of(module)
            if size is None:
                return f"they pass through `{path}`, a {type(module).__name__}, whose channels cannot be taken out"
            limit = size.out_channels if self._sides(item)[1] else size.in_channels
            if max(item.idxs, default=0) >= limit or None in item.root_idxs:
                return f"Torch-Pruning loses track of them at `{path}`"
        if self.num_channels % self.parts():
            return "its grouped convolutions do not divide its channels"
        return None

    def parts(self) -> int:
        """The largest number of groups among the group's grouped convolutions; depthwise ones need no such care."""
        modules = (item.dep.target.module for item in self._group)
        sizes = (size_of(module) for module in modules if isinstance(module, nn.Module))
        return max((size.groups for size in sizes if size and size.groups != size.out_channels), default=1)


def _is_norm(module: nn.Module) -> bool:
    size = size_of(module)
    return size is not None and size.in_channels == 0
