"""Training that makes the channels to be cut small before they are cut."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...pipeline.data import Batch
from ...pipeline.training import Moment, Objective
from ..recovery import Recovery
from .blocks import Block
from .groups import ChannelGroup, Member
from .importance import channel_rows

STEEPNESS = 4
"""The least important unit of a group is drawn to zero 2 to this power times as strongly as the most important one."""


class Regularization(Recovery, frozen=True, extra="forbid"):
    """A distillation before the cut, whose loss draws channels to zero over all the layers that share them."""

    method: Literal["group_norm", "growing"] = "group_norm"
    """`group_norm`: all channels, the less important the stronger, by 2^(4·(I_max − I)/(I_max − I_min)) with I the
    squared norm over the group (Fang et al. 2023, arXiv 2301.12900, §3.3). `growing`: those that the cut would take,
    ever stronger (Wang et al. 2021, arXiv 2012.09243)."""
    strength: Annotated[float, Field(gt=0)] = 5e-3
    """What half of the most important channel's squared norm is multiplied by; of the least important one 16 times as
    much, which `growing` reaches at the end of the training."""
    epochs: Annotated[int, Field(ge=1)] = 1


class Regularized(Objective):
    """An objective with one more term, `sparsity`."""

    def __init__(self, objective: Objective, settings: Regularization, ordered: Sequence[Block], cut: int) -> None:
        """`ordered` are the blocks of channels as they would go, of which the first `cut` are to."""
        super().__init__()
        self._objective = objective
        self._settings = settings
        self._groups = list({id(block.group): block.group for block in ordered}.values())
        doomed: dict[int, list[int]] = {}
        for block in ordered[:cut]:
            doomed.setdefault(id(block.group), []).extend(block.units)
        self._doomed: Mapping[int, list[int]] = doomed

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Those of the objective, and half of the weighed squared norms of the channels."""
        penalties = [self._penalty(model, group, moment) for group in self._groups]
        return self._objective.terms(model, batch, moment) | {"sparsity": torch.stack(penalties).sum() / 2}

    def finish(self) -> None:
        """Of the objective."""
        self._objective.finish()

    def _penalty(self, model: nn.Module, group: ChannelGroup, moment: Moment) -> Tensor:
        squares = squared_norms(model, group)
        strength = self._settings.strength
        if self._settings.method == "growing":
            grown = 2**STEEPNESS * strength * (moment.step + 1) / moment.num_steps
            return grown * squares[self._doomed.get(id(group), [])].sum()
        with torch.no_grad():
            spread = (squares.max() - squares.min()).clamp(min=1e-12)
            weights = 2 ** (STEEPNESS * (squares.max() - squares) / spread)
        return strength * (weights * squares).sum()


@torch.no_grad()
def norm_share(model: nn.Module, blocks: Sequence[Block]) -> float:
    """The share of their groups' squared norms that lies in the blocks' channels."""
    units: dict[int, tuple[ChannelGroup, list[int]]] = {}
    for block in blocks:
        units.setdefault(id(block.group), (block.group, []))[1].extend(block.units)
    squares = [(squared_norms(model, group), own) for group, own in units.values()]
    return sum(float(each[own].sum()) for each, own in squares) / sum(float(each.sum()) for each, _ in squares)


def squared_norms(model: nn.Module, group: ChannelGroup) -> Tensor:
    """The squared norm of each unit of a group over all layers that share it, with gradients."""
    parts = (
        _by_unit(model.get_submodule(member.path), member, group.num_units)
        for member in group.members
        if member.dim is None
    )
    return torch.stack([part for part in parts if part is not None]).sum(0)


def _by_unit(layer: nn.Module, member: Member, num_units: int) -> Tensor | None:
    weight = layer.weight
    if not isinstance(weight, Tensor):  # a norm that does not scale
        return None
    rows = channel_rows(layer, weight, written=member.writes)[list(member.channels)]
    roots = torch.tensor(member.roots, device=weight.device)
    return weight.new_zeros(num_units).index_add(0, roots, rows.square().sum(1).to(weight.dtype))
