"""What each operator of a captured graph does with channels."""

from collections.abc import Callable

import torch
from torch import Tensor

from .labels import broadcast_shape, spread_out_together
from .layers import LAYERS, NORMS
from .moves import MOVES
from .products import PRODUCTS
from .tracing import CONSTANT, Call, Found


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


POINTWISE = _names(
    "relu relu6 gelu silu mish sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu selu celu softplus softsign",
    "logsigmoid hardshrink softshrink threshold clamp clamp_min clamp_max exp expm1 log log1p sqrt rsqrt square",
    "reciprocal abs neg sign erf sin cos pow add sub rsub mul div true_divide maximum minimum where masked_fill",
    "gt ge lt le eq ne logical_and logical_or logical_not isnan isinf",
    "zeros_like ones_like full_like lerp addcmul addcdiv fmod remainder round floor ceil",
    "to _to_copy type_as float clone contiguous detach alias lift_fresh_copy lift_fresh",
    "dropout feature_dropout alpha_dropout",
)
WINDOWS = (
    "max_pool",
    "avg_pool",
    "adaptive_max_pool",
    "adaptive_avg_pool",
    "upsample",
    "reflection_pad",
    "replication_pad",
)
REDUCTIONS = _names("mean sum amax amin max min prod var std logsumexp norm linalg_vector_norm all any")
ALONG = _names("softmax _softmax log_softmax cumsum cumprod sort")


def labels_of(call: Call) -> Found:
    """The labels of what a call returns; what it asks of its arguments' labels is noted in the trace.

    Channels that enter an operator which is not known stay, with its name as the reason.
    """
    if all(labels is None for _, labels in call.tensors()) and call.name not in LAYERS:
        return None
    rule = _RULES.get(call.name) or _by_kind(call.name)
    return rule(call) if rule else call.stuck()


def _by_kind(name: str) -> Callable[[Call], Found] | None:
    if name in POINTWISE:
        return _pointwise
    if name in REDUCTIONS:
        return _reduced
    if name in ALONG:
        return _along
    return _windows if name.startswith(WINDOWS) else None


def _pointwise(call: Call) -> Found:
    found: Tensor | None = None
    tensors = call.tensors()
    for value, labels in sorted(tensors, key=lambda pair: (pair[1] is None, -pair[0].numel())):
        shape = broadcast_shape(value.shape, call.value.shape)
        if shape != call.value.shape:
            return call.stuck()
        mine = torch.zeros((1,) * value.ndim, dtype=torch.long) if labels is None else labels
        mine = mine.expand(value.shape)
        found = mine.expand(shape) if found is None else _met(call, found, mine)
    return found


def _met(call: Call, channels: Tensor, other: Tensor) -> Tensor:
    """The labels of what two operands make together.

    An element that is broadcast over several channels of one tensor scales or shifts them all: it stays, they may go.
    """
    labels = call.trace.labels
    other = other[(None,) * (channels.ndim - other.ndim)]
    over = tuple(dim for dim, size in enumerate(other.shape) if size == 1 and channels.shape[dim] > 1)
    wide, narrow = spread_out_together(labels.now(channels), labels.now(other))
    if not over or not any(labels.varies(channels, dim) for dim in over):
        labels.join(channels, other, CONSTANT)
    else:
        several = _several(call, wide, over)
        labels.stick(narrow.amax(over, keepdim=True)[several], "they scale several channels at once")
        alone = ~several.expand(wide.shape)
        labels.join(wide[alone], narrow[alone], CONSTANT)
    return channels if bool((channels != 0).all()) else torch.where(channels != 0, channels, other)


def _several(call: Call, wide: Tensor, over: tuple[int, ...]) -> Tensor:
    """Where along `over` there is more than one channel of one tensor; of tensors side by side, it is one of each."""
    low, high = wide.amin(over, keepdim=True), wide.amax(over, keepdim=True)
    sources = call.trace.labels.source(wide)
    one_tensor = sources.amin(over, keepdim=True) == sources.amax(over, keepdim=True)
    return (low != high) & one_tensor


def _reduced(call: Call) -> Found:
    labels = call.labels("self") if call.labels("self") is not None else call.labels("input")
    if labels is None:
        return call.stuck()
    dims = call.argument("dim")
    dims = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = sorted({dim % labels.ndim for dim in dims})
    if any(call.trace.labels.along(labels, dim) is not None for dim in dims):
        return call.stuck(f"`{call.name}` in {call.place} goes over them")
    call.trace.labels.join_along(labels, tuple(dims), CONSTANT)  # such as heads that are added up
    kept = labels[tuple(slice(0, 1) if dim in dims else slice(None) for dim in range(labels.ndim))]
    found: list[Tensor | None] = [kept.reshape(value.shape) for value in call.values]
    return found if isinstance(call.value, (tuple, list)) else found[0]


def _along(call: Call) -> Found:
    labels = call.labels("self")
    if labels is not None and call.trace.labels.varies(labels, call.argument("dim", -1)):
        call.stuck(f"`{call.name}` in {call.place} goes over them")
    return [labels, None] if isinstance(call.value, tuple) else labels


def _windows(call: Call) -> Found:
    labels = next(labels for _, labels in call.tensors() if labels is not None)
    spatial = next(int(letter) for letter in call.name if letter.isdigit())
    dims = range(labels.ndim - spatial, labels.ndim)
    if any(call.trace.labels.varies(labels, dim) for dim in dims):
        return call.stuck()
    found = labels[(..., *(slice(0, 1) for _ in dims))].expand(call.values[0].shape)
    return [found, None] if isinstance(call.value, tuple) else found


_RULES = LAYERS | NORMS | MOVES | PRODUCTS
