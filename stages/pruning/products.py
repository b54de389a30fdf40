"""What products of two activations do with channels: attention's scores, and the means that it takes of the values."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .labels import broadcast_shape
from .tracing import Bundle, Call, Found

ALONE = "they are multiplied with something of fixed size"


def _matmul(call: Call) -> Found:
    (first, of_first), (second, of_second) = call.tensors() if len(call.tensors()) == 2 else call.tensors() * 2
    if min(first.ndim, second.ndim) < 2 or call.name in {"baddbmm", "addmm"}:
        return call.stuck()
    return product(call, _or_none(first, of_first), _or_none(second, of_second))


def _attention(call: Call) -> Found:
    if call.argument("enable_gqa", default=False):
        return call.stuck("heads share their keys")
    query, key, value = (_or_none(call.argument(name), call.labels(name)) for name in ("query", "key", "value"))
    scores = product(call, query, key.transpose(-2, -1))
    bias = call.labels("attn_mask")
    if bias is not None:
        call.trace.labels.join(scores, bias, ALONE)
    return product(call, scores, value)


def _or_none(value: Tensor, labels: Tensor | None) -> Tensor:
    return labels if labels is not None else torch.zeros((), dtype=torch.long).expand(value.shape)


def product(call: Call, first: Tensor, second: Tensor) -> Tensor:
    """The labels of (…, n, k) times (…, k, m).

    Channels along k end in the product, and those of both factors go together. What is left of them is, for each part
    of the batch that has channels of its own, a head: it goes when all of its channels do. Other channels pass.
    """
    labels = call.trace.labels
    ends = (labels.varies(first, -1), labels.varies(second, -2))
    shape = (*broadcast_shape(first.shape[:-2], second.shape[:-2]), first.shape[-2], second.shape[-1])
    if any(ends):
        rows = _summed(call, first, -2) if ends[0] else first[..., 0, :]
        columns = _summed(call, second, -1) if ends[1] else second[..., 0]
        labels.join(rows, columns, ALONE)
        call.trace.contracted.append(rows)
        if not all(ends):
            return torch.zeros((), dtype=torch.long).expand(shape)
        return _heads(call, rows)[..., None, None].expand(shape)
    return _passed(call, first[..., :1].expand(shape), second[..., :1, :].expand(shape))


def _summed(call: Call, labels: Tensor, dim: int) -> Tensor:
    return call.trace.labels.join_along(labels, (dim % labels.ndim,), ALONE)


def _heads(call: Call, rows: Tensor) -> Tensor:
    """A new label for each part of the batch whose channels are others."""
    found = call.trace.labels.now(rows)
    rows_of_all = found.reshape(-1, found.shape[-1])
    kinds, which = cast(tuple[Tensor, Tensor], cast(Any, torch).unique(rows_of_all, dim=0, return_inverse=True))
    if len(kinds) == 1:
        return torch.zeros((), dtype=torch.long).expand(found.shape[:-1])
    heads = call.trace.labels.fresh(len(kinds))
    call.trace.bundles.append(Bundle(heads[:, None].expand(kinds.shape), kinds))
    return heads[which].view(found.shape[:-1])


def _passed(call: Call, rows: Tensor, columns: Tensor) -> Tensor:
    """Heads take channels along; two kinds of channels in one product stay."""
    labels = call.trace.labels
    of_rows, of_columns = labels.varies(rows, -2), labels.varies(columns, -1)
    if of_rows and of_columns:
        labels.stick(rows, ALONE)
        labels.stick(columns, ALONE)
        return torch.zeros((), dtype=torch.long).expand(rows.shape)
    heads, channels = (columns, rows) if of_rows else (rows, columns)
    heads, channels = labels.now(heads), labels.now(channels)
    pairs = (
        torch.stack([heads[..., :1, :], channels[..., :1, :]], -1)
        if not of_rows
        else torch.stack([heads, channels], -1)
    )
    pairs = cast(Tensor, cast(Any, torch).unique(pairs.reshape(-1, 2), dim=0))
    pairs = pairs[(pairs != 0).all(1)]
    if len(pairs):
        call.trace.bundles.append(Bundle(pairs[:, 0], pairs[:, 1]))
    return channels if bool((channels != 0).any()) else heads


PRODUCTS: dict[str, Callable[[Call], Found]] = {
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    "scaled_dot_product_attention": _attention,
}
"""By operator name."""
