"""Trying every group of channels before any is chosen, so that a wrong index map costs its own group only."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from .channels import CutError, cut
from .groups import ChannelGroup, Grouping, LeftAlone, kept_channels
from .proof import prove


def trusted(model: nn.Module, grouping: Grouping, inputs: Mapping[str, Tensor]) -> Grouping:
    """The grouping without the groups whose cut cannot be proven; those are left alone, with the reason.

    Each is tried with half of its channels gone, and with a single one, which no `chunk` divides evenly. Where all of
    them pass together, they are not tried alone.
    """
    if _problem(model, grouping.groups, inputs) is None:
        return grouping
    good: list[ChannelGroup] = []
    bad: list[LeftAlone] = []
    for group in grouping.groups:
        problem = _problem(model, [group], inputs)
        if problem is None:
            good.append(group)
        else:
            bad.append(LeftAlone(group.layers, problem))
    return replace(grouping, groups=tuple(good), left_alone=(*grouping.left_alone, *bad))


def _problem(model: nn.Module, groups: Sequence[ChannelGroup], inputs: Mapping[str, Tensor]) -> str | None:
    for count in (lambda units: units // 2, lambda units: min(1, units - 1)):
        kept = kept_channels(model, ((group, _weakest(group, count(len(group.scores)))) for group in groups))
        try:
            prove(model, cut(model, kept)[0], kept, inputs)
        except CutError as error:
            return str(error)
    return None


def _weakest(group: ChannelGroup, count: int) -> list[int]:
    return sorted(range(len(group.scores)), key=lambda unit: group.scores[unit])[:count]
