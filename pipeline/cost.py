"""What a model costs on paper: multiply-accumulates and parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def macs_by_layer(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Multiply-accumulates for one sample of each convolution and linear layer that runs, by module path.

    A layer that runs more than once counts each time; additions of biases and everything else are left out.
    """
    counts: dict[str, int] = {}
    handles: list[Any] = []

    def counter(path: str) -> Any:
        def count(module: nn.Module, arguments: Any, output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            positions = output[0].numel() if isinstance(module, nn.Linear) else output[0, 0].numel()
            per_position = weight[0].numel() if isinstance(module, nn.Linear) else weight.numel()
            counts[path] = counts.get(path, 0) + positions * per_position

        return count

    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(counter(path)))
    training = model.training
    try:
        model.eval()(*(tensor[:1] for tensor in inputs.values()))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return counts


def macs(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one sample."""
    return sum(macs_by_layer(model, inputs).values())


def num_parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
