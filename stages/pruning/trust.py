"""Trying every group of channels before any is chosen, so that a wrong index map costs its own group only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...pipeline.seeding import generator
from .channels import CutError, cut
from .groups import ChannelGroup, Grouping, LeftAlone, kept_channels
from .proof import prove


def trusted(model: nn.Module, grouping: Grouping, inputs: Mapping[str, Tensor]) -> Grouping:
    """The grouping without the groups whose cut cannot be proven; those are left alone, with the reason.

    Each is tried with half of its channels gone, drawn at random since a mix-up can agree with itself on regular ones,
    and with a single one, which no `chunk` divides evenly. They are tried together and, where that fails, in halves:
    few are bad, and a proof runs the model four times. A bad one that can be understood otherwise is tried so.
    """
    good: list[ChannelGroup] = []
    left_alone: list[LeftAlone] = []
    problems: dict[str, str] = {}
    tried = grouping.groups
    while tried:
        bad = _bad(model, tried, inputs)
        good += (group for group in tried if all(group is not other for other, _ in bad))
        problems = {group.name: problem for group, problem in bad} | problems  # the first way's is the reason
        left_alone += (LeftAlone(group.layers, problems[group.name]) for group, _ in bad if group.otherwise is None)
        tried = tuple(group.otherwise for group, _ in bad if group.otherwise is not None)
    order = {group.name: position for position, group in enumerate(grouping.groups)}
    good.sort(key=lambda group: order[group.name])
    return replace(grouping, groups=tuple(good), left_alone=(*grouping.left_alone, *left_alone))


def _bad(
    model: nn.Module, groups: Sequence[ChannelGroup], inputs: Mapping[str, Tensor]
) -> list[tuple[ChannelGroup, str]]:
    problem = _problem(model, groups, inputs) if groups else None
    if problem is None:
        return []
    if len(groups) == 1:
        return [(groups[0], problem)]
    middle = len(groups) // 2
    return [*_bad(model, groups[:middle], inputs), *_bad(model, groups[middle:], inputs)]


def _problem(model: nn.Module, groups: Sequence[ChannelGroup], inputs: Mapping[str, Tensor]) -> str | None:
    halves = [(group, _drawn(group, group.num_units // 2)) for group in groups]
    singles = [(group, _drawn(group, 1)) for group in groups if group.num_units > 1]
    for removals in (halves, singles):
        kept = kept_channels(model, removals)
        try:
            prove(model, cut(model, kept)[0], kept, inputs)
        except CutError as error:
            return str(error)
    return None


def _drawn(group: ChannelGroup, count: int) -> list[int]:
    return [int(unit) for unit in torch.randperm(group.num_units, generator=generator(0, "trust"))[:count]]
