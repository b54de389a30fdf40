"""Running a network on a whole batch by several processes, as if one had run it.

Each process runs the network on its own rows of the batch and gets the outputs of all rows. Everything behind, such as
the losses, is then computed alike in every process, from the whole batch: what compares samples with each other, or
remembers them, sees all of them. Four functions carry tensors over the border, each the other's derivative in pairs
(so they may be differentiated any number of times): rows are taken from a whole, and gathered; weights go in, and
their gradients come out summed, so that every process has the gradients of the whole batch.

Within, batch norms take the statistics of the whole batch (as in synchronised batch norm), quantizers its range, and
dropout draws its noise for the whole batch, of which each process applies its own rows.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .processes import Processes
from .taps import Outputs, Taps

_regions: list["_Region"] = []
"""Those that this process is in, the innermost last."""


def shared_outputs(
    model: nn.Module, inputs: Mapping[str, Tensor], taps: Collection[str], processes: Processes
) -> Outputs:
    """`outputs_of` a whole batch, of which every process runs its rows; the batch must divide evenly among them."""
    rows = tuple(_one(_Rows, processes, tensor) for tensor in inputs.values())
    with Taps(model, taps) as found, _region(processes, len(rows[0])):
        logits = _with_shared_gradients(model, processes)(*rows)

    def whole(tensor: Tensor) -> Tensor:
        return _one(_Whole, processes, tensor.float())

    maps = {tap: found.tensors[tap] for tap in sorted(found.tensors)}
    return Outputs(whole(logits), {tap: whole(tensor) for tap, tensor in maps.items()}, found.edges, whole)


def divides(inputs: Mapping[str, Tensor], processes: Processes) -> bool:
    """Whether a batch can be shared: others are run as a whole by every process, to the same result."""
    return processes.together and all(len(tensor) % processes.count == 0 for tensor in inputs.values())


def extremes(values: Tensor) -> Tensor:
    """The lowest and the highest of the values, (2,) in float32: over the whole batch, where processes share it."""
    low, high = (end.float() for end in torch.aminmax(values))
    if not _regions:
        return torch.stack([low, high])
    low, high = _regions[-1].processes.largest(torch.stack([-low, high]))
    return torch.stack([-low, high])


def _with_shared_gradients(model: nn.Module, processes: Processes) -> Callable[..., Tensor]:
    """The model, whose parameters get the gradients of all rows."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not trained or not torch.is_grad_enabled():
        return model
    inside = _several(_Inside, processes, *trained.values())
    copies = dict(zip(trained, inside, strict=True))
    return lambda *rows: cast(Tensor, functional_call(model, copies, rows))


def _one(function: type[torch.autograd.Function], processes: Processes, tensor: Tensor) -> Tensor:
    return cast(Any, function).apply(processes, tensor)


def _several(function: type[torch.autograd.Function], processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:
    return cast(Any, function).apply(processes, *tensors)


class _Whole(torch.autograd.Function):
    """From each process's rows to those of all."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, rows: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.processes = processes
        return processes.gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, _one(_Rows, ctx.processes, gradients[0])


class _Rows(torch.autograd.Function):
    """From the rows of all, the process's own."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, whole: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.processes = processes
        return processes.own(whole)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, _one(_Whole, ctx.processes, gradients[0])


class _Inside(torch.autograd.Function):
    """From what all processes have alike to what each works on with its rows: the same values."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.processes = processes
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        # What the network did not use has no gradient, in any process.
        used = [gradient for gradient in gradients if gradient is not None]
        sums = iter(_several(_Summed, ctx.processes, *used) if used else ())
        return None, *(None if gradient is None else next(sums) for gradient in gradients)


class _Summed(torch.autograd.Function):
    """From what each process found for its rows to the sum over all."""

    @staticmethod
    def forward(ctx: Any, processes: Processes, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.processes = processes
        return tuple(processes.summed(tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *_several(_Inside, ctx.processes, *gradients)


@contextmanager
def _region(processes: Processes, rows: int) -> Generator[None]:
    region = _Region(processes, rows)
    _regions.append(region)
    try:
        with region:
            yield
    finally:
        _regions.pop()


class _Region(TorchFunctionMode):
    """Within, what a network computes from a whole batch is computed from the whole batch."""

    def __init__(self, processes: Processes, rows: int) -> None:
        super().__init__()
        self.processes = processes
        self._rows = rows

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Functions that look at the batch, or draw for it, in our own way; others as they are."""
        own = _OWN_WAYS.get(func)
        found = NotImplemented if own is None else own(self, func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is NotImplemented else found

    def batch_norm(
        self,
        func: Any,
        values: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        """In training, by the mean and the variance of all rows; values (B, C, …)."""
        if not training:
            return NotImplemented
        axes = [0, *range(2, values.ndim)]
        variance, mean = torch.var_mean(values.float(), axes, correction=0)
        # As many rows in each process: the whole's variance is the mean variance and that of the means.
        all_own = _one(_Whole, self.processes, torch.stack([mean, variance])[None])
        means, variances = all_own.unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if running_mean is not None and running_var is not None:
            count = values.numel() // values.shape[1] * self.processes.count
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / max(count - 1, 1))).to(running_var.dtype), momentum)
        mean, variance = _several(_Inside, self.processes, mean, variance)
        scale = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
        shift = -mean * scale if bias is None else bias - mean * scale
        along = (1, -1, *(1,) * (values.ndim - 2))
        return torch.addcmul(shift.view(along), values, scale.view(along)).to(values.dtype)

    def dropout(self, func: Any, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        """The noise that one process would have drawn, for any first axis that samples lie along."""
        if not training or p == 0:
            return NotImplemented
        with torch.no_grad():
            noise = self.processes.own(func(torch.ones_like(self._whole_empty(values)), p, True))
        return values.mul_(noise) if inplace else values * noise

    def bernoulli(self, func: Any, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In place, as stochastic depth draws which samples' branches are left out."""
        if values.ndim == 0 or len(values) != self._rows:
            return NotImplemented
        return values.copy_(self.processes.own(func(self._whole_empty(values), *args, **kwargs)))

    def _whole_empty(self, values: Tensor) -> Tensor:
        """In the order of memory in which one process would have drawn."""
        shape = (len(values) * self.processes.count, *values.shape[1:])
        turned = values.ndim == 4 and not values.is_contiguous()
        order = torch.channels_last if turned else torch.contiguous_format
        return torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=order)


_OWN_WAYS: dict[Any, Callable[..., Any]] = {
    functional.batch_norm: _Region.batch_norm,
    functional.dropout: _Region.dropout,
    functional.dropout1d: _Region.dropout,
    functional.dropout2d: _Region.dropout,
    functional.dropout3d: _Region.dropout,
    Tensor.bernoulli_: _Region.bernoulli,
}
