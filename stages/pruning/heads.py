"""Heads of attention as what is removed, and the integers by which code knows their number or their width."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, product

from torch import nn

from ...pipeline.blueprint import layer_sizes
from .groups import ChannelGroup, Counted
from .labels import distinct
from .tracing import CONSTANT, Trace


def bundle(trace: Trace) -> None:
    """Make each head one channel, with all that is inside it: queries, keys, values and what is scaled by head."""
    for each in trace.bundles:
        trace.labels.join(each.heads, each.channels, CONSTANT)


def head_labels(trace: Trace) -> set[int]:
    """The labels of heads."""
    return {label for each in trace.bundles for label in distinct(trace.labels.now(each.heads))}


def tried(variants: Sequence[ChannelGroup], ways: Sequence[tuple[Counted, ...]]) -> ChannelGroup:
    """The first of the variants counted in the first way, and the others behind it, to be tried in this order."""
    found: ChannelGroup | None = None
    for counted, variant in reversed([*product(ways, variants)]):
        found = replace(variant, counted=counted, otherwise=found)
    assert found is not None  # there is one way at least: nothing to count
    return found


def ways(model: nn.Module, group: ChannelGroup, labels: Sequence[int], trace: Trace) -> Iterator[tuple[Counted, ...]]:
    """How code may know how many units there are: from the shapes, or from attributes of the module that splits them.

    Which one is right shows when they are tried.
    """
    owners = dict.fromkeys(
        split.path
        for split in trace.splits
        if group.num_units in split.sizes and not distinct(trace.labels.now(split.labels)).isdisjoint(labels)
    )
    own = [owner for owner in owners if owner not in layer_sizes(model)]
    width = min(len(member.channels) for member in group.members)
    units = [*chain.from_iterable(_integers(model, owner, group.num_units) for owner in own)]
    widths = [*chain.from_iterable(_integers(model, owner, width) for owner in own)]
    of_units = [Counted(path, group.num_units, 1) for path in units]
    of_widths = [Counted(path, width, width // group.num_units) for path in widths if path not in units]
    yield ()
    for one in of_units:
        yield (one,)
        for other in of_widths:
            yield (one, other)


def _integers(model: nn.Module, owner: str, value: int) -> list[str]:
    """The integer attributes of a module that have this value; what is called after heads first."""
    attributes = vars(model.get_submodule(owner))
    names = [name for name, each in attributes.items() if type(each) is int and each == value]
    return [f"{owner}.{name}" if owner else name for name in sorted(names, key=lambda name: "head" not in name)]
