"""A cut as a claim, which channels each layer keeps, and the network that follows from it."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import LayerSize, Resize, layer_sizes
from ...pipeline.errors import StageError


class CutError(StageError):
    """A cut that gives no network, or another one than it claims."""


@dataclass(frozen=True)
class Channels:
    """The channels that a layer keeps, as positions in the uncut layer, ascending."""

    read: tuple[int, ...]
    """Input channels or features; empty for norms, whose channels are all in `written`."""
    written: tuple[int, ...]


def all_channels(model: nn.Module) -> dict[str, Channels]:
    """The claim that nothing is cut, for every layer that can be."""
    return {
        path: Channels(tuple(range(size.in_channels)), tuple(range(size.out_channels)))
        for path, size in layer_sizes(model).items()
    }


@torch.no_grad()
def cut(model: nn.Module, kept: Mapping[str, Channels]) -> tuple[nn.Module, Resize]:
    """A trainable copy in which every layer has its kept channels only, and the edit that gives its structure.

    Raises CutError where the groups of a grouped convolution would come out unequal, or nothing would be left.
    """
    sizes_before = layer_sizes(model)
    sizes: dict[str, LayerSize] = {}
    states: dict[str, dict[str, Tensor]] = {}
    for path, channels in kept.items():
        before = sizes_before[path]
        counts = (len(channels.read), len(channels.written))
        if counts != (before.in_channels, before.out_channels):
            states[path], groups = _cut_state(model.get_submodule(path), before, channels, path)
            sizes[path] = LayerSize(in_channels=counts[0], out_channels=counts[1], groups=groups)
    edit = Resize(layers=sizes)
    pruned = deepcopy(model)
    edit.apply(pruned)
    for path, state in states.items():
        pruned.get_submodule(path).load_state_dict(state)
    return pruned.requires_grad_(requires_grad=True), edit


def _cut_state(layer: nn.Module, size: LayerSize, channels: Channels, path: str) -> tuple[dict[str, Tensor], int]:
    """The layer's tensors with the kept channels only, and the number of its groups that remain."""
    if not channels.written:
        raise CutError(f"`{path}` would have no channel left")
    written = torch.tensor(channels.written)
    tensors = layer.state_dict()
    state = {name: tensor[written] if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    if size.in_channels == 0:
        return state, 1
    transposed = getattr(layer, "transposed", False)
    blocks = list(_weight_blocks(tensors["weight"], size, channels, transposed=transposed))
    if len({block.shape for block in blocks}) != 1 or blocks[0].numel() == 0:
        raise CutError(f"the {size.groups} groups of `{path}` would be left with unequal numbers of channels")
    return state | {"weight": torch.cat(blocks)}, len(blocks)


def _weight_blocks(weight: Tensor, size: LayerSize, channels: Channels, *, transposed: bool) -> Iterator[Tensor]:
    """The kept part of each group's weight; groups of which nothing is left, as of depthwise ones, are skipped."""
    read = _by_group(channels.read, size.in_channels, size.groups)
    written = _by_group(channels.written, size.out_channels, size.groups)
    # A weight is (out, in / groups, …), a transposed convolution's (in, out / groups, …).
    rows, columns = (read, written) if transposed else (written, read)
    for block, kept_rows, kept_columns in zip(weight.chunk(size.groups), rows, columns, strict=True):
        if kept_rows or kept_columns:
            yield block[kept_rows][:, kept_columns]


def _by_group(kept: tuple[int, ...], num_channels: int, groups: int) -> list[list[int]]:
    """The kept channels of each group, counted from the group's first."""
    span = num_channels // groups
    return [[index - group * span for index in kept if index // span == group] for group in range(groups)]
