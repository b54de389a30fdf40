"""Inputs of free length: samples that are not equally long, padded to one block, and cut when a batch is taken.

The input that is called `attention_mask` says it: (N, L) of ones for what a sample has and zeros behind it. All
inputs of whole numbers of the same shape (N, L) have its length, which then is as free as the batch: batches are cut to
their longest sample, and engines take any length.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from .errors import DataError

MASK = "attention_mask"
POOL = 50
"""Batches whose samples are sorted by length together: within them, hardly anything is padded."""


def free_inputs(inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the inputs whose second axis is a free length; none without a mask."""
    mask = inputs.get(MASK)
    if mask is None or mask.ndim != 2:
        return ()
    return tuple(
        name for name, tensor in inputs.items() if tensor.shape == mask.shape and not tensor.is_floating_point()
    )


def lengths_of(inputs: Mapping[str, Tensor], origin: str) -> Tensor | None:
    """How long each sample is, int64 (N,); None without a mask. DataError for a mask that has gaps or is empty."""
    if not free_inputs(inputs):
        return None
    mask = inputs[MASK]
    lengths = mask.sum(1)
    wrong = ((mask != (torch.arange(mask.shape[1]) < lengths[:, None])).any(1) | (lengths == 0)).nonzero().flatten()
    if len(wrong):
        raise DataError(
            f"{origin}: {MASK} of sample {int(wrong[0])} is no row of ones with zeros behind them; an input of this "
            "name says how long samples are: pad at the end, or call it otherwise"
        )
    return lengths


def cut(inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """The inputs with the free lengths cut to `length`, which no sample may exceed."""
    free = free_inputs(inputs)
    return {name: tensor[:, :length].contiguous() if name in free else tensor for name, tensor in inputs.items()}


def order_by_length(lengths: Tensor, batch_size: int, draws: Generator) -> Tensor:
    """All positions in a random order in which the samples of a batch are about equally long; int64 (N,).

    Whole batches come first: samples drawn into pools of `POOL` batches, sorted in the pool, and the batches shuffled.
    """
    order = torch.randperm(len(lengths), generator=draws)
    whole = len(order) // batch_size * batch_size
    if not whole:
        return order
    starts = range(0, whole, POOL * batch_size)
    pools = [order[start : min(start + POOL * batch_size, whole)] for start in starts]
    by_length = [pool[torch.sort(lengths[pool], stable=True).indices] for pool in pools]
    batches = torch.cat(by_length).view(-1, batch_size)
    shuffled = batches[torch.randperm(len(batches), generator=draws)]
    return torch.cat([shuffled.flatten(), order[whole:]])


def example_pair(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """The inputs with two samples and a length of two at least: torch.export takes sizes 0 and 1 for constants."""
    free = free_inputs(inputs)
    grown: list[Tensor] = []
    for name, tensor in inputs.items():
        repeats = [2 if len(tensor) < 2 else 1] + [1] * (tensor.ndim - 1)
        if name in free and tensor.shape[1] < 2:
            repeats[1] = 2
        grown.append(tensor.repeat(repeats) if max(repeats) > 1 else tensor)
    return grown
