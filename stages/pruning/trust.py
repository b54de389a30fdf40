"""Trying every group of channels before any is chosen, so that a wrong index map costs its own group only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...pipeline.seeding import generator
from .channels import CutError, cut
from .groups import ChannelGroup, Counted, Grouping, LeftAlone, kept_channels
from .proof import prove


def trusted(model: nn.Module, grouping: Grouping, inputs: Mapping[str, Tensor]) -> Grouping:
    """The grouping without the groups whose cut cannot be proven; those are left alone, with the reason.

    Each is tried with half of its channels gone, drawn at random since a mix-up can agree with itself on regular ones,
    and with a single one, which no `chunk` divides evenly. They are tried together and, where that fails, in halves:
    few are bad, and a proof runs the model four times. A bad one that can be understood otherwise is tried so, and
    those that code knows by one integer are tried as one group.
    """
    good: list[ChannelGroup] = []
    alone: list[ChannelGroup] = []
    problems: dict[str, str] = {}
    tried = grouping.groups
    while tried:
        bad = [each for groups in _tried_together(tried) for each in _bad(model, groups, inputs)]
        good += (group for group in tried if all(group is not other for other, _ in bad))
        problems = {group.name: problem for group, problem in bad} | problems  # the first way's is the reason
        alone += (group for group, _ in bad if group.otherwise is None)
        tried = tuple(group.otherwise for group, _ in bad if group.otherwise is not None)
    joined = [each for each in _joined(alone) if _problem(model, [each], inputs) is None]
    good += joined
    cut_too = {layer for group in good for layer in group.layers}
    left_alone = (
        LeftAlone(group.layers, problems[group.name], some=not cut_too.isdisjoint(group.layers))
        for group in alone
        if not any(set(group.layers) <= set(each.layers) for each in joined)
    )
    order = {group.name: position for position, group in enumerate(grouping.groups)}
    good.sort(key=lambda group: order[group.name])
    return replace(grouping, groups=tuple(good), left_alone=(*grouping.left_alone, *left_alone))


def _tried_together(groups: Sequence[ChannelGroup]) -> list[Sequence[ChannelGroup]]:
    """All of them, but each alone that writes inside of a module where one of them edits an integer.

    Together, two that count by one integer agree while they lose as many, or the one counts for the other.
    """
    owners = {each.path.rpartition(".")[0] for group in groups for each in group.counted}
    inside = [
        group
        for group in groups
        if any(not owner or layer.startswith(f"{owner}.") for owner in owners for layer in group.layers)
    ]
    others = [group for group in groups if all(group is not each for each in inside)]
    return [others, *([group] for group in inside)]


def _joined(groups: Sequence[ChannelGroup]) -> Iterator[ChannelGroup]:
    """Groups of as many units that count by the same integers, as one: queries and values of one width.

    `groups` are the last ways to understand each of them.
    """
    by_count: dict[tuple[tuple[Counted, ...], int, int], list[ChannelGroup]] = {}
    for group in groups:
        if group.counted:
            by_count.setdefault((group.counted, group.num_units, group.parts), []).append(group)
    for first, *others in by_count.values():
        if others:
            yield replace(first, members=(*first.members, *(member for each in others for member in each.members)))


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
