"""What criteria learn from real samples: gradients of the task's loss, and what the layers read."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import layer_sizes
from ..judgement import SAMPLES, sampled
from ..stage import Context

SINGLE_SAMPLES = 128
"""Training samples looked at where each is a pass of its own."""


def gradients(model: nn.Module, context: Context) -> dict[str, Tensor]:
    """The gradient of the loss by parameter name, summed over batches of training samples, in eval mode."""
    found = _zeros(model)
    for _ in _differentiated(model, context, SAMPLES, context.data.batch_size):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.cpu()
    model.to("cpu")
    return found


def squared_gradients(model: nn.Module, context: Context) -> dict[str, Tensor]:
    """The mean squared gradient of single samples' losses by parameter name: the diagonal of the empirical Fisher."""
    found, count = _zeros(model), 0
    for _ in _differentiated(model, context, SINGLE_SAMPLES, 1):
        count += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.cpu().square()
    model.to("cpu")
    return {name: total / count for name, total in found.items()}


@torch.no_grad()
def absolute_inputs(model: nn.Module, context: Context) -> dict[str, Tensor]:
    """The mean |input| of every channel that a convolution or linear layer reads, by the layer's path."""
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with _listening(model, totals, counts):
        for batch in sampled(context, SAMPLES, context.data.batch_size, "activation of channels"):
            model.to(context.device).eval()(*batch.inputs.values())
    model.to("cpu")
    return {path: total.cpu() / counts[path] for path, total in totals.items()}


def _differentiated(model: nn.Module, context: Context, samples: int, batch_size: int) -> Iterator[None]:
    """The parameters hold one batch's gradients each time."""
    model.to(context.device).eval()
    for batch in sampled(context, samples, batch_size, "importance of channels"):
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(context.task.loss(model(*batch.inputs.values()), batch.target))
        yield
    model.zero_grad(set_to_none=True)


def _zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(parameter, device="cpu") for name, parameter in model.named_parameters()}


@contextmanager
def _listening(model: nn.Module, totals: dict[str, Tensor], counts: dict[str, int]) -> Generator[None]:
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(_adds_to(path, totals, counts))
        for path, size in layer_sizes(model).items()
        if size.in_channels
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adds_to(path: str, totals: dict[str, Tensor], counts: dict[str, int]) -> Callable[[nn.Module, Any], None]:
    def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].detach()
        by_channel = values.flatten(0, -2) if isinstance(layer, nn.Linear) else values.transpose(0, 1).flatten(1).T
        totals[path] = totals.get(path, 0) + by_channel.abs().double().sum(0)
        counts[path] = counts.get(path, 0) + by_channel.shape[0]

    return hook
