"""Which layers of a model can be factorized, and why the others are left alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pipeline.cost import CONVOLUTIONS, TRANSPOSED
from .ranks import LayerRanks
from .splits import Kind


def candidates(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    kinds: Sequence[Kind],
    round_to: int,
) -> dict[str, LayerRanks]:
    """Every layer that runs and that one of the kinds is for, in the model's order."""
    found: dict[str, LayerRanks] = {}
    for path, layer in _layers_that_run(model, inputs).items():
        own: list[Kind] = [kind for kind in kinds_for(layer) if kind in kinds]
        if own:
            found[path] = LayerRanks(layer, own, round_to)
    return found


def left_alone(model: nn.Module, inputs: Mapping[str, Tensor], kinds: Sequence[Kind]) -> dict[str, str]:
    """Why each other linear layer, convolution and embedding that runs stays whole, by path."""
    return {
        path: _reason(layer)
        for path, layer in _layers_that_run(model, inputs).items()
        if not set(kinds_for(layer)) & set(kinds)
    }


def kinds_for(layer: nn.Module) -> tuple[Kind, ...]:
    """The kinds of factors that such a layer can have."""
    # Subclasses are left alone: their own forward may do more than the product.
    if type(layer) is nn.Linear:
        return ("svd",)
    if type(layer) is nn.Embedding and layer.max_norm is None:
        return ("embedding",)
    if type(layer) is nn.Conv2d and layer.groups == 1:
        return ("svd",) if set(layer.kernel_size) == {1} else ("tucker2", "spatial", "cp")
    return ()


def _reason(layer: nn.Module) -> str:
    possible = kinds_for(layer)
    if possible:
        return f"only `kinds` of {', '.join(possible)} are for it"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "its `max_norm` rescales whole rows as it reads them, which factors cannot"
    known: Any = layer
    if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)) and known.groups > 1:
        depthwise = known.groups == known.in_channels
        return "a depthwise convolution" if depthwise else f"a convolution in {known.groups} groups"
    return f"no kind of factors is for a {type(layer).__name__}"


@torch.no_grad()
def _layers_that_run(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Linear layers, convolutions and embeddings that are called for one sample, in the model's order."""
    layers = {
        path: layer
        for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules())
        if isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding))
    }
    ran: set[nn.Module] = set()
    hooks = [layer.register_forward_pre_hook(lambda layer, _: ran.add(layer)) for layer in layers.values()]
    training = model.training
    try:
        model.eval()(*(tensor[:1] for tensor in inputs.values()))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {path: layer for path, layer in layers.items() if layer in ran}
