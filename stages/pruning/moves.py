"""What operators that only move values do with channels: they move the labels likewise.

What such an operator asks of the numbers of channels is noted: that parts stay equal, or that none moves up.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from .tracing import CONSTANT, Call, Found, Picked, Split


def _moved(call: Call) -> Found:
    found = call.moved()
    before = next((labels for _, labels in call.tensors() if labels is not None), None)
    assert before is not None  # else there was nothing to move
    if isinstance(found, Tensor) and call.name in {"view", "reshape", "_unsafe_view", "unflatten", "view_as"}:
        call.trace.splits += [Split(before, dim, sizes, call.path) for dim, sizes in splits(before.shape, found.shape)]
    if call.name in {"chunk", "split", "split_with_sizes", "tensor_split"} and isinstance(found, list):
        _divided(call, before, [each.shape for each in found if each is not None])
    if call.name in {"slice", "narrow"} and isinstance(found, Tensor):
        _sliced(call, before, found)
    if call.name in {"select", "unbind", "index", "index_select"}:
        reason = f"code picks some of them by number ({call.name})"
        dims = range(before.ndim) if call.name == "index" else [call.argument("dim", 0) % before.ndim]
        dims = [dim for dim in dims if call.name != "index" or _indexed(call, dim)]
        call.trace.picked += [Picked(before, dim, before.shape[dim], reason) for dim in dims]
    return found


def _indexed(call: Call, dim: int) -> bool:
    indices = call.argument("indices", ())
    return dim < len(indices) and indices[dim] is not None


def splits(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Which dimensions a reshape splits, and into what."""
    found: list[tuple[int, tuple[int, ...]]] = []
    old_end = new_end = 0
    while old_end < len(before) and new_end < len(after):
        old_start, new_start = old_end, new_end
        old_end, new_end = old_end + 1, new_end + 1
        while (olds := prod(before[old_start:old_end])) != (news := prod(after[new_start:new_end])):
            if olds < news:
                old_end += 1
            else:
                new_end += 1
        parts = tuple(size for size in after[new_start:new_end] if size > 1)
        if old_end - old_start == 1 and len(parts) > 1:
            found.append((old_start, parts))
    return found


def _divided(call: Call, before: Tensor, shapes: list[torch.Size]) -> None:
    dim: int = call.argument("dim", 0) % before.ndim
    sizes = {shape[dim] for shape in shapes}
    if len(sizes) == 1:
        call.trace.splits.append(Split(before, dim, (len(shapes), *sizes), call.path))
    else:
        reason = "code splits them into parts of unequal sizes"
        call.trace.picked.append(Picked(before, dim, before.shape[dim], reason))


def _sliced(call: Call, before: Tensor, found: Tensor) -> None:
    dim: int = call.argument("dim", 0) % before.ndim
    size, taken = before.shape[dim], found.shape[dim]
    if size == taken:
        return
    start: int = call.argument("start") or 0
    start += size if start < 0 else 0
    if size % taken == 0 and start % taken == 0 and call.argument("step", 1) == 1:
        call.trace.splits.append(Split(before, dim, (size // taken, taken), call.path))
    else:
        below = start if start + taken == size else start + taken
        below = below if call.argument("step", 1) == 1 else size
        call.trace.picked.append(Picked(before, dim, below, "code takes a slice of fixed size from them"))


def _padded(call: Call) -> Found:
    """What is put beside channels belongs to none; what is put along maps belongs to the channel of the map."""
    labels, amounts = call.labels("self"), list(call.argument("pad"))
    if labels is None:
        return call.stuck()
    for dim, before, after in zip(range(labels.ndim - 1, -1, -1), amounts[::2], amounts[1::2], strict=False):
        if before == after == 0:
            continue
        if not call.trace.labels.varies(labels, dim):
            shape = list(labels.shape)
            shape[dim] += before + after
            labels = labels.narrow(dim, 0, 1).expand(shape)
        elif call.argument("mode", "constant") != "constant" or min(before, after) < 0:
            return call.stuck()
        else:
            ends = ([*labels.shape[:dim], size, *labels.shape[dim + 1 :]] for size in (before, after))
            zeros = [torch.zeros((), dtype=torch.long).expand(shape) for shape in ends]
            labels = torch.cat([zeros[0], labels, zeros[1]], dim)
    return labels


def _gated(call: Call) -> Found:
    labels = call.labels("self")
    if labels is None:
        return None
    dim: int = call.argument("dim", -1) % labels.ndim
    call.trace.splits.append(Split(labels, dim, (2, labels.shape[dim] // 2), call.path))
    value, gate = labels.chunk(2, dim)
    call.trace.labels.join(value, gate, CONSTANT)
    return value


MOVES: dict[str, Callable[[Call], Found]] = {
    **dict.fromkeys(
        " ".join(
            (
                "view reshape _unsafe_view view_as reshape_as unflatten flatten squeeze unsqueeze",
                "permute transpose swapaxes swapdims movedim moveaxis t numpy_T flip roll",
                "slice select narrow chunk tensor_split split split_with_sizes unbind index index_select",
                "cat concat stack expand expand_as broadcast_to repeat repeat_interleave tile",
                "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
            )
        ).split(),
        _moved,
    ),
    "pad": _padded,
    "constant_pad_nd": _padded,
    "glu": _gated,
}
"""By operator name."""
