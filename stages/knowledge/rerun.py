"""Running a network once more within a step, without a trace in it."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.func import functional_call


def rerun(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits (B, C) of one more forward, in float32, in the modes that the modules are in.

    Buffers stay as they are: a BatchNorm in train mode normalises by the batch and does not add it to its statistics.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return cast(Tensor, functional_call(model, buffers, tuple(inputs.values()))).float()


def only_real_numbers(inputs: Mapping[str, Tensor]) -> bool:
    """Whether gradients of all inputs exist."""
    return all(tensor.is_floating_point() for tensor in inputs.values())


def differentiable(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the inputs that ask for gradients."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
