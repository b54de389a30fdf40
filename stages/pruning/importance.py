"""How much each channel of a group matters: the criteria of the field, over all layers that share the channel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import size_of
from ...pipeline.cost import TRANSPOSED
from ...pipeline.seeding import generator
from ..stage import Context
from .evidence import absolute_inputs, gradients, squared_gradients
from .groups import ChannelGroup, Grouping, LeftAlone, Member

Criterion = Literal["l1", "l2", "lamp", "bn_scale", "fpgm", "taylor", "hessian", "activation", "random"]
"""The measures, each of one channel over the layers that share it:

- `l1`, `l2`: the norm of its weights (Li et al. 2017, arXiv 1608.08710; of groups: Fang et al. 2023, arXiv 2301.12900).
- `lamp`: l2, weighed against what would be left of its group (Lee et al. 2021, arXiv 2010.07611).
- `bn_scale`: the scale of its batch norm (Liu et al. 2017, arXiv 1708.06519).
- `fpgm`: the distance of its filter to all others (He et al. 2019, arXiv 1811.00250).
- `taylor`: |weight · gradient| (Molchanov et al. 2019, arXiv 1906.10771).
- `hessian`: half of weight² times the loss's curvature, whose diagonal is taken from the squared gradients of single
  samples (LeCun et al. 1990, Optimal Brain Damage).
- `activation`: the mean |input| that the layers behind it read (Molchanov et al. 2017, arXiv 1611.06440).
- `random`: a draw, the baseline that a criterion has to beat.
"""

NEEDS_TRAINING: frozenset[Criterion] = frozenset({"taylor", "hessian", "activation"})
"""Those that look at what a trained network does with real samples, and mean nothing before."""


@dataclass(frozen=True)
class Scored:
    """A group with the importance of its units."""

    group: ChannelGroup
    scores: tuple[float, ...]
    """For each of its units, relative to their mean; none is negative."""


def scored(
    model: nn.Module, grouping: Grouping, criterion: Criterion, context: Context
) -> tuple[list[Scored], list[LeftAlone]]:
    """Every group with its scores, and those that the criterion says nothing about."""
    found: list[Scored] = []
    left_alone: list[LeftAlone] = []
    judge = _judge(model, criterion, context)
    for group in grouping.groups:
        layers = [member for member in group.members if member.dim is None]  # bare parameters have no say
        judged = [(member, judge(model.get_submodule(member.path), member)) for member in layers]
        known = [(member, scores) for member, scores in judged if scores is not None]
        if known:
            found.append(Scored(group, _relative(group, known)))
        else:
            why = "no batch norm scales them" if criterion == "bn_scale" else "no layer reads them"
            reason = f"`criterion: {criterion}` says nothing about them, since {why}"
            left_alone.append(LeftAlone(group.layers, reason))
    return found, left_alone


Judge = Callable[[nn.Module, Member], Tensor | None]
"""The scores of a layer's channels in a group, in the order of the member's `channels`; None where it has no say."""


def _relative(group: ChannelGroup, known: Sequence[tuple[Member, Tensor]]) -> tuple[float, ...]:
    by_unit = torch.zeros(group.num_units, dtype=torch.float64)
    for member, scores in known:
        by_unit.index_add_(0, torch.tensor(member.roots), scores.detach().double())
    mean = float(by_unit.mean())
    return tuple(float(score) / mean if mean > 0 else 1.0 for score in by_unit)


def _judge(model: nn.Module, criterion: Criterion, context: Context) -> Judge:
    match criterion:
        case "l1":
            return lambda layer, member: _rows(layer, member).abs().sum(1)
        case "l2" | "lamp":
            return lambda layer, member: _rows(layer, member).square().sum(1)
        case "bn_scale":
            return _batch_norm_scale
        case "fpgm":
            return _distance_to_others
        case "taylor":
            return _beside(gradients(model, context), lambda weight, gradient: (weight * gradient).abs())
        case "hessian":
            return _beside(squared_gradients(model, context), lambda weight, square: weight.square() * square / 2)
        case "activation":
            return _mean_input(absolute_inputs(model, context))
        case "random":
            return _drawn(context)


def _beside(measured: Mapping[str, Tensor], score: Callable[[Tensor, Tensor], Tensor]) -> Judge:
    def judge(layer: nn.Module, member: Member) -> Tensor | None:
        of_weight = measured.get(f"{member.path}.weight")
        if of_weight is None:  # a norm that does not scale
            return None
        return score(_rows(layer, member), _rows(layer, member, of_weight)).sum(1)

    return judge


def _batch_norm_scale(layer: nn.Module, member: Member) -> Tensor | None:
    is_norm = isinstance(layer, nn.modules.batchnorm._NormBase)  # pyright: ignore[reportPrivateUsage] # the norms' only common class
    return _rows(layer, member).abs().sum(1) if is_norm and layer.affine else None


def _distance_to_others(layer: nn.Module, member: Member) -> Tensor | None:
    if not member.writes or _is_vector(layer):
        return None
    filters = _rows(layer, member)
    return torch.cdist(filters, filters).sum(1)


def _mean_input(measured: Mapping[str, Tensor]) -> Judge:
    return lambda layer, member: measured[member.path][list(member.channels)] if member.reads else None


def _drawn(context: Context) -> Judge:
    def judge(layer: nn.Module, member: Member) -> Tensor:
        return torch.rand(len(member.channels), generator=generator(context.seed, "random", member.path))

    return judge


def _rows(layer: Any, member: Member, values: Tensor | None = None) -> Tensor:
    """The elements of `values`, by default the weight, that belong to each of the member's channels, (channels, n)."""
    weight: Tensor | None = layer.weight if values is None else values
    if weight is None:  # a norm that does not scale
        return torch.zeros(len(member.channels), 1)
    return channel_rows(layer, weight.detach(), written=member.writes)[list(member.channels)]


def channel_rows(layer: nn.Module, weight: Tensor, *, written: bool) -> Tensor:
    """A tensor like the layer's weight as (channels, n), by its output channels if `written`, else by its inputs."""
    if _is_vector(layer):
        return weight.view(-1, 1)
    size = size_of(layer)
    assert size is not None  # a group with any other layer is left alone
    if isinstance(layer, nn.Embedding):
        return weight.T
    # A weight is (out, in / groups, …), a transposed convolution's (in, out / groups, …).
    if written != isinstance(layer, TRANSPOSED):
        return weight.flatten(1)
    by_group = weight.view(size.groups, -1, weight.shape[1], *weight.shape[2:])
    return by_group.transpose(1, 2).flatten(0, 1).flatten(1)


def _is_vector(layer: nn.Module) -> bool:
    """Whether the layer has one weight a channel: a norm or a PReLU."""
    size = size_of(layer)
    return size is not None and size.in_channels == 0 and not isinstance(layer, nn.Embedding)
