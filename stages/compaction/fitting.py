"""Fitting a layer's compact form to the layer's own outputs, in closed form.

A convolution is linear in the patches x that it reads, y = Wx + b. The squared error of a compact weight V over
training samples is then tr((W−V) C (W−V)ᵀ), with C = E[xxᵀ], about the mean where a bias can make up for it. C is all
that is needed of the samples: V follows from least squares, without steps or a learning rate.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pipeline.compact_filters import CompactFilter, compacted
from ...pipeline.data import Batch

ROUNDS = 20
"""Of solving for the k×k filters and for the 1×1 weights in turns, at most."""
ENOUGH = 1e-3
"""A round that lowers the error by less than this share of it is the last one."""
PATCHES = 65536
"""At most so many patches of all samples are looked at, drawn at random."""
RIDGE = 1e-7
"""Of the mean diagonal: what the samples do not decide stays near where it was."""

_linalg = cast(Any, torch.linalg)  # its functions carry no types


@dataclass(frozen=True)
class Patches:
    """What a layer read on some samples, in second moments."""

    mean: Tensor
    """(in · k · k), float64."""
    moments: Tensor
    """E[xxᵀ], (in · k · k, in · k · k), float64."""

    def spread(self, *, about_mean: bool) -> Tensor:
        """The moments, or the covariance."""
        return self.moments - torch.outer(self.mean, self.mean) if about_mean else self.moments


@torch.no_grad()
def patches_of(model: nn.Module, path: str, batches: list[Batch], draws: torch.Generator) -> Patches:
    """What the layer at `path` reads when the model, in eval mode on the samples' device, runs on the batches."""
    layer = cast(nn.Conv2d, model.get_submodule(path))
    width = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    total, moments, count = torch.zeros(width).double(), torch.zeros(width, width).double(), 0
    per_batch = PATCHES // len(batches)

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count, total, moments
        rows = _rows(layer, inputs[0].float())
        rows = rows[torch.randperm(len(rows), generator=draws)[:per_batch].to(rows.device)]
        total += rows.sum(0).cpu().double()
        moments += (rows.T @ rows).cpu().double()
        count += len(rows)

    hook = layer.register_forward_pre_hook(look)
    try:
        for batch in batches:
            model(*batch.inputs.values())
    finally:
        hook.remove()
    return Patches(total / count, moments / count)


def _rows(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Every patch as a row, in the order of the weight's axes: channel, height, width."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(inputs, cast(Any, layer)._reversed_padding_repeated_twice, mode=mode)
    columns = nn.functional.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def fitted(layer: nn.Conv2d, filters: CompactFilter, patches: Patches, path: str) -> tuple[nn.Module, float]:
    """The compact form that comes nearest to the layer's outputs, and the share of their squares that it misses.

    With a bias, the shares are those of the outputs' variances.
    """
    weight = layer.weight.detach().cpu().double()
    bias = layer.bias
    spread = patches.spread(about_mean=bias is not None)
    form = compacted(layer, filters, path)
    if isinstance(form, nn.Sequential):
        kernels, mixing = separable(weight, filters.number, spread)
        compact = dense_of(kernels, mixing, weight)
        depthwise, last = cast(nn.Conv2d, form[0]), cast(nn.Conv2d, form[1])
        depthwise.weight.copy_(kernels.view_as(depthwise.weight))
        last.weight.copy_(mixing.view_as(last.weight))
    else:
        last, blocks = form, grouped(weight, filters.number, spread)
        compact = _spread_out(blocks, weight)
        last.weight.copy_(blocks)
    if last.bias is not None and bias is not None:
        shift = (weight - compact).flatten(1) @ patches.mean
        last.bias.copy_(bias.detach().cpu().double() + shift)
    return form, missed(weight, compact, spread)


def missed(weight: Tensor, compact: Tensor, spread: Tensor) -> float:
    """tr((W−V) C (W−V)ᵀ) / tr(W C Wᵀ)."""
    whole, difference = weight.flatten(1), (weight - compact).flatten(1)
    total = float(((whole @ spread) * whole).sum())
    return float(((difference @ spread) * difference).sum()) / total if total > 0 else 0.0


def separable(weight: Tensor, number: int, spread: Tensor) -> tuple[Tensor, Tensor]:
    """`number` k×k filters for each input channel, (in · number, k · k), and what mixes them, (out, in · number).

    They begin as the best approximation of that rank of each input channel's (out, k · k) slice.
    """
    kernels, mixing = _of_slices(weight, number)
    size_out, size_in = weight.shape[:2]
    window = weight[0, 0].numel()
    channel = torch.arange(size_in).repeat_interleave(number)
    wide = spread.view(size_in, window, size_in, window)[channel][:, :, channel]
    wanted = (weight.flatten(1) @ spread).view(size_out, size_in, window)[:, channel]
    error = missed(weight, dense_of(kernels, mixing, weight), spread)
    for _ in range(ROUNDS):
        gram = torch.einsum("ak,akbl,bl->ab", kernels, wide, kernels)
        mixing = _solved(gram, torch.einsum("ak,oak->ao", kernels, wanted), mixing.T).T
        gram = ((mixing.T @ mixing)[:, None, :, None] * wide).flatten(2).flatten(0, 1)
        right = torch.einsum("oa,oak->ak", mixing, wanted).reshape(-1, 1)
        kernels = _solved(gram, right, kernels.reshape(-1, 1)).view_as(kernels)
        before, error = error, missed(weight, dense_of(kernels, mixing, weight), spread)
        if before - error <= ENOUGH * before:
            break
    return kernels, mixing


def _of_slices(weight: Tensor, number: int) -> tuple[Tensor, Tensor]:
    slices = weight.flatten(2).transpose(0, 1)
    left, values, right = _linalg.svd(slices, full_matrices=False)
    rank = min(number, values.shape[1])
    roots = values[:, :rank].sqrt()
    kernels, mixing = right[:, :rank] * roots[:, :, None], left[:, :, :rank] * roots[:, None]
    if rank < number:
        kernels = nn.functional.pad(kernels, (0, 0, 0, number - rank))
        mixing = nn.functional.pad(mixing, (0, number - rank))
    return kernels.flatten(0, 1), mixing.transpose(1, 2).flatten(0, 1).T


def dense_of(kernels: Tensor, mixing: Tensor, weight: Tensor) -> Tensor:
    """The dense weight that computes what the two do, in the shape of `weight`."""
    size_in = weight.shape[1]
    of_channel = kernels.view(size_in, -1, kernels.shape[1])
    return torch.einsum("oir,irk->oik", mixing.view(len(weight), size_in, -1), of_channel).view_as(weight)


def grouped(weight: Tensor, groups: int, spread: Tensor) -> Tensor:
    """A weight for `groups` groups, (out, in / groups, k, k), beginning as the dense one's own part."""
    size_out, size_in = weight.shape[:2]
    wanted = weight.flatten(1) @ spread
    width = wanted.shape[1] // groups
    blocks: list[Tensor] = []
    for group, rows in enumerate(torch.arange(size_out).view(groups, -1)):
        columns = slice(group * width, (group + 1) * width)
        own = weight.flatten(1)[rows, columns]
        blocks.append(_solved(spread[columns, columns], wanted[rows, columns].T, own.T).T)
    return torch.cat(blocks).view(size_out, size_in // groups, *weight.shape[2:])


def _spread_out(blocks: Tensor, weight: Tensor) -> Tensor:
    """The dense weight of a grouped one."""
    dense = torch.zeros_like(weight)
    groups = weight.shape[1] // blocks.shape[1]
    size_out = len(weight) // groups
    for group in range(groups):
        rows = slice(group * size_out, (group + 1) * size_out)
        dense[rows, group * blocks.shape[1] : (group + 1) * blocks.shape[1]] = blocks[rows]
    return dense


def _solved(gram: Tensor, right: Tensor, near: Tensor) -> Tensor:
    """The solution of gram · x = right that lies nearest to `near` where there are many."""
    scale = float(gram.diagonal().mean())
    if scale <= 0:
        return near
    damped = gram + RIDGE * scale * torch.eye(len(gram), dtype=gram.dtype)
    return near + _linalg.solve(damped, right - gram @ near)
