"""2:4 sparsity: of every four neighbouring weights along a layer's input, two at least are zero.

GPUs from NVIDIA's Ampere on skip those zeros (Mishra et al. 2021, arXiv 2104.08378). TensorRT looks for the pattern
along the input channels, for each output channel and each position of a kernel by itself.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

GROUP = 4
ZEROS = 2


def obstacle(layer: nn.Module) -> str | None:
    """Why a layer cannot hold the pattern; None for linear layers and ungrouped convolutions of enough inputs."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if layer.groups > 1:
            return "its channels are grouped"
        inputs = layer.in_channels
    elif isinstance(layer, nn.Linear):
        inputs = layer.in_features
    else:
        return f"a {type(layer).__name__} is neither a convolution nor a linear layer"
    return f"its {inputs} inputs do not come in fours" if inputs % GROUP else None


def kept(weight: Tensor) -> Tensor:
    """Which elements of a weight (out, in, …) stay, bool: the two of the largest magnitude of every four."""
    groups = _in_fours(weight).abs()
    order = groups.sort(dim=-1, descending=True, stable=True).indices
    stays = torch.zeros_like(groups, dtype=torch.bool)
    stays.scatter_(-1, order[..., : GROUP - ZEROS], value=True)
    return stays.flatten(-2).movedim(-1, 1)


def holds(weight: Tensor) -> bool:
    """Whether a weight (out, in, …) has the pattern."""
    return weight.shape[1] % GROUP == 0 and bool(((_in_fours(weight) == 0).sum(-1) >= ZEROS).all())


def _in_fours(weight: Tensor) -> Tensor:
    """(out, …, in / 4, 4)."""
    last = weight.movedim(1, -1)
    return last.reshape(*last.shape[:-1], -1, GROUP)


@contextmanager
def zeros_held(model: nn.Module, names: Iterable[str]) -> Generator[None]:
    """Within the block, what is zero in the parameters of these names gets no gradient.

    SGD then leaves it at zero: momentum sums zeros, and weight decay of zero is zero.
    """
    parameters: dict[str, Any] = dict(model.named_parameters())
    hooks: list[Any] = [parameters[name].register_hook(_silences_zeros(parameters[name])) for name in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _silences_zeros(parameter: nn.Parameter) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(parameter == 0, 0)
