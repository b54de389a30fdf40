"""What a model costs on paper: multiply-accumulates and parameters."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
            counts[path] = counts.get(path, 0) + _positions(module, arguments[0], output) * weight.numel()

        return count

    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    for path, module in modules:
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            handles.append(module.register_forward_hook(counter(path)))
    training = model.training
    try:
        model.eval()(*(tensor[:1] for tensor in inputs.values()))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return counts


def _positions(layer: nn.Module, sample: Tensor, output: Tensor) -> int:
    """How often each element of the layer's weight is multiplied for one sample."""
    if isinstance(layer, nn.Linear):
        return output[0].numel() // layer.out_features
    return (sample if isinstance(layer, TRANSPOSED) else output)[0, 0].numel()


def macs(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one sample."""
    return sum(macs_by_layer(model, inputs).values())


def num_parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
