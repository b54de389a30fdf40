"""What layers do with channels: they read some, write new ones, or scale each by itself."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from .tracing import CONSTANT, Call, Found, Split


def _convolution(call: Call) -> Found:
    path = call.layer()
    labels = call.labels("input")
    if path is None or call.argument("weight").ndim != call.value.ndim:
        return call.stuck()
    size = call.size_of(path)
    if labels is not None:
        over = tuple(dim for dim in range(labels.ndim) if dim != 1)
        read = call.trace.labels.join_along(labels, over, CONSTANT)
    else:
        read = torch.zeros(size.in_channels, dtype=torch.long)
    call.trace.read(path, read)
    if 1 < size.groups == size.in_channels:
        written = read.repeat_interleave(size.out_channels // size.groups)  # a channel of its own makes each
    else:
        written = call.new_channels(size.out_channels)
        if size.groups > 1:
            call.trace.splits.append(Split(read, 0, (size.groups, size.in_channels // size.groups), path))
            call.trace.splits.append(Split(written, 0, (size.groups, size.out_channels // size.groups), path))
    return _across(call.trace.write(path, written), 1, call.value)


def _linear(call: Call) -> Found:
    path = call.layer()
    labels = call.labels("input")
    if path is None or call.size_of(path).in_channels == 0:
        return call.stuck()
    size = call.size_of(path)
    if labels is not None:
        call.trace.read(path, call.trace.labels.join_along(labels, tuple(range(labels.ndim - 1)), CONSTANT))
    return _across(call.trace.write(path, call.new_channels(size.out_channels)), -1, call.value)


def _embedding(call: Call) -> Found:
    path = call.layer()
    if path is None or call.size_of(path).in_channels:
        return call.stuck()
    return _across(call.trace.write(path, call.new_channels(call.size_of(path).out_channels)), -1, call.value)


def _batch_norm(call: Call) -> Found:
    return _scaled(call, call.layer() or call.layer("running_mean"), 1)


def _prelu(call: Call) -> Found:
    if call.argument("weight").numel() == 1:
        return call.labels("self")
    return _scaled(call, call.layer(), 1)


def _layer_norm(call: Call) -> Found:
    if len(call.argument("normalized_shape")) != 1:
        return call.stuck(f"{call.place} takes the mean over more than them")
    return _scaled(call, call.layer(), -1)


def _scaled(call: Call, path: str | None, dim: int) -> Found:
    """A layer with one weight, or statistic, for each channel."""
    labels = next((labels for _, labels in call.tensors() if labels is not None), None)
    if labels is None or path is None or call.size_of(path).in_channels:
        return call.stuck()
    over = tuple(other for other in range(labels.ndim) if other != dim % labels.ndim)
    channels = call.trace.write(path, call.trace.labels.join_along(labels, over, CONSTANT))
    return _across(channels, dim, call.value)


def _across(channels: Tensor, dim: int, value: object) -> Tensor:
    """The labels of a tensor whose channels lie along one dimension."""
    shape = [1] * cast(Tensor, value).ndim
    shape[dim] = len(channels)
    return channels.view(shape).expand(cast(Tensor, value).shape)


LAYERS: dict[str, Callable[[Call], Found]] = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution
    ),
    "linear": _linear,
    "embedding": _embedding,
}
"""Operators that make channels of what has none, by name."""

NORMS: dict[str, Callable[[Call], Found]] = {
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "prelu": _prelu,
}
"""Operators with one weight for each channel, by name."""
