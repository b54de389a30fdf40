"""A cut as a claim, which channels each layer keeps, and the network that follows from it."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

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
    """Input channels or features; empty for norms, embeddings and bare parameters, whose channels are `written`."""
    written: tuple[int, ...]
    dim: int | None = None
    """Of a parameter or buffer outside of any layer: the dimension of its channels."""
    scales: Mapping[int, float] = field(default_factory=dict[int, float])
    """What the weights of written channels are multiplied by, where code divides by how many there are."""


@dataclass(frozen=True)
class Kept:
    """What a cut keeps of a model."""

    layers: Mapping[str, Channels]
    """By the path of every layer that can be cut, and of bare parameters that are."""
    attributes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Integers that code reads from modules, such as the number of heads, by path."""


def all_channels(model: nn.Module) -> dict[str, Channels]:
    """The claim that nothing is cut, for every layer that can be."""
    return {
        path: Channels(tuple(range(size.in_channels)), tuple(range(size.out_channels)))
        for path, size in layer_sizes(model).items()
    }


@torch.no_grad()
def cut(model: nn.Module, kept: Kept) -> tuple[nn.Module, Resize]:
    """A trainable copy in which every layer has its kept channels only, and the edit that gives its structure.

    Raises CutError where the groups of a grouped convolution would come out unequal, or nothing would be left.
    """
    sizes_before = layer_sizes(model)
    sizes: dict[str, LayerSize] = {}
    states: dict[str, dict[str, Tensor]] = {}
    bare: dict[str, Tensor] = {}
    for path, channels in kept.layers.items():
        if channels.dim is not None:
            bare[path] = _bare(model, path).index_select(channels.dim, torch.tensor(channels.written))
            continue
        before = sizes_before[path]
        counts = (len(channels.read), len(channels.written))
        if counts != (before.in_channels, before.out_channels) or channels.scales:
            states[path], groups = _cut_state(model.get_submodule(path), before, channels, path)
            sizes[path] = LayerSize(in_channels=counts[0], out_channels=counts[1], groups=groups)
    shapes = {path: tuple(tensor.shape) for path, tensor in bare.items()}
    edit = Resize(layers=sizes, tensors=shapes, attributes=dict(kept.attributes))
    pruned = deepcopy(model)
    edit.apply(pruned)
    for path, state in states.items():
        pruned.get_submodule(path).load_state_dict(state)
    for path, tensor in bare.items():
        _bare(pruned, path).copy_(tensor)
    return pruned.requires_grad_(requires_grad=True), edit


def _bare(model: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def _cut_state(layer: nn.Module, size: LayerSize, channels: Channels, path: str) -> tuple[dict[str, Tensor], int]:
    """The layer's tensors with the kept channels only, and the number of its groups that remain."""
    if not channels.written:
        raise CutError(f"`{path}` would have no channel left")
    written = torch.tensor(channels.written)
    tensors = scaled(layer, channels)
    state = {name: tensor[written] if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    if isinstance(layer, nn.Embedding):
        return {"weight": tensors["weight"][:, written]}, 1
    if size.in_channels == 0:
        return state, 1
    transposed = getattr(layer, "transposed", False)
    blocks = list(_weight_blocks(tensors["weight"], size, channels, transposed=transposed))
    if len({block.shape for block in blocks}) != 1 or blocks[0].numel() == 0:
        raise CutError(f"the {size.groups} groups of `{path}` would be left with unequal numbers of channels")
    return state | {"weight": torch.cat(blocks)}, len(blocks)


def scaled(layer: nn.Module, channels: Channels) -> dict[str, Tensor]:
    """The layer's tensors, the rows of some channels multiplied."""
    tensors = layer.state_dict()
    if channels.scales:
        assert isinstance(layer, nn.Linear)  # what attention multiplies
        for name, tensor in tensors.items():
            factors = torch.ones(len(tensor), dtype=tensor.dtype)
            factors[list(channels.scales)] = torch.tensor(list(channels.scales.values()), dtype=tensor.dtype)
            tensors[name] = tensor * factors.view(-1, *(1,) * (tensor.ndim - 1))
    return tensors


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
