"""The proof of a cut: the pruned network computes what the original computes with the removed channels silenced.

It knows nothing of how a cut was found, so it catches an index map whose shapes fit and whose channels do not.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import layer_sizes
from ...pipeline.errors import StageError
from .channels import Channels, CutError, Kept, groups_left, scaled

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference allowed, relative to the largest output; only the order of summation differs."""


def silenced(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy in which the channels that a cut removes are zero wherever a layer writes or reads them.

    Where they are read, too, because an activation such as sigmoid makes something of a zero. A LayerNorm takes its
    mean over the channels that are kept, and norms of groups or by root mean square likewise: with zeros among them it
    would be another network, which no cut one could be equal to. Channels whose weights a cut scales are scaled back
    behind their layer: what is left of the scale is its rounding.
    """
    silent = deepcopy(model)
    sizes = layer_sizes(model)
    for path, channels in kept.layers.items():
        if channels.dim is not None:
            _silence(silent, path, channels)
            continue
        layer, size = silent.get_submodule(path), sizes[path]
        if channels.scales:
            layer.load_state_dict(scaled(layer, channels))
            layer.register_forward_hook(_scaled_back(channels))
        if len(channels.written) < size.out_channels:
            normalizes = isinstance(layer, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))
            if normalizes:
                narrow = _narrow(layer, channels.written, groups_left(size, channels, path))
                layer.register_forward_hook(_normed_alone(narrow, size.out_channels, channels.written))
            else:
                layer.register_forward_hook(_written_mask(layer, channels.written))
        if len(channels.read) < size.in_channels:
            layer.register_forward_pre_hook(_read_mask(layer, channels.read))
    return silent


def _scaled_back(channels: Channels) -> Callable[..., Tensor]:
    def hook(_: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        factors = torch.ones(output.shape[-1], dtype=torch.float64)
        factors[list(channels.scales)] = torch.tensor(list(channels.scales.values()), dtype=torch.float64)
        return output / factors.to(output.dtype)

    return hook


def _silence(model: nn.Module, path: str, channels: Channels) -> None:
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), name)
    removed = torch.ones(tensor.shape[channels.dim or 0], dtype=torch.bool)
    removed[list(channels.written)] = False
    with torch.no_grad():
        tensor.index_fill_(channels.dim or 0, removed.nonzero().flatten(), 0)


def _narrow(norm: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm, kept: tuple[int, ...], groups: int) -> nn.Module:
    narrow = deepcopy(norm)
    if isinstance(narrow, nn.GroupNorm):
        narrow.num_channels, narrow.num_groups = len(kept), groups
    else:
        narrow.normalized_shape = (len(kept),)
    for name, parameter in norm.named_parameters():
        setattr(narrow, name, nn.Parameter(parameter[list(kept)]))
    return narrow


def _normed_alone(narrow: nn.Module, width: int, kept: tuple[int, ...]) -> Callable[..., Tensor]:
    def normed(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        narrow.to(output.dtype)
        dim = _normed_dim(narrow, width, output)
        where = torch.tensor(kept)
        return torch.zeros_like(output).index_copy(dim, where, narrow(arguments[0].index_select(dim, where)))

    return normed


def _normed_dim(norm: nn.Module, width: int, output: Tensor) -> int:
    """The last one, or the second of maps (N, C, …): of a GroupNorm, and of a LayerNorm that is written for maps."""
    for_maps = type(norm) not in (nn.LayerNorm, nn.RMSNorm) and output.ndim == 4 and output.shape[1] == width
    return 1 if isinstance(norm, nn.GroupNorm) or for_maps else output.ndim - 1


def _written_mask(layer: nn.Module, kept: tuple[int, ...]) -> Callable[..., Tensor]:
    def mask(_: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return _masked(layer, output, kept)

    return mask


def _read_mask(layer: nn.Module, kept: tuple[int, ...]) -> Callable[..., tuple[Tensor, ...]]:
    def mask(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_masked(layer, arguments[0], kept), *arguments[1:])

    return mask


def _masked(layer: nn.Module, values: Tensor, kept: tuple[int, ...]) -> Tensor:
    dim = values.ndim - 1 if isinstance(layer, (nn.Linear, nn.Embedding)) else 1
    silent = torch.ones(values.shape[dim], dtype=torch.bool)
    silent[list(kept)] = False
    # Not a product: an infinite value in a removed channel is silent too.
    return values.masked_fill(silent.view(-1, *(1,) * (values.ndim - 1 - dim)), 0)


@torch.no_grad()
def prove(model: nn.Module, pruned: nn.Module, kept: Kept, inputs: Mapping[str, Tensor]) -> None:
    """Compare both on two batch sizes: all of `inputs`, which holds at least two samples, and the first of them.

    Raises CutError when the pruned network does not run, has outputs of another shape, or computes something else than
    `model` does with the channels silenced that `kept` leaves out.
    """
    demand_equal(
        silenced(deepcopy(model), kept),
        pruned,
        inputs,
        "the original with the removed channels silenced",
        "its layers do not agree on which channels those are",
    )


@torch.no_grad()
def demand_equal(
    silent: nn.Module,
    pruned: nn.Module,
    inputs: Mapping[str, Tensor],
    what: str,
    why: str = "what is left reaches into it",
) -> None:
    """Raise CutError unless `pruned` computes what `silent` computes, on all of `inputs` and on the first sample.

    StageError where `silent` itself does not run on these. `what` names it in the message, and `why` what a difference
    means.
    """
    dtype = _dtype(silent, inputs)
    pruned, silent = deepcopy(pruned).eval().to(dtype), silent.eval().to(dtype)
    for batch in _two_batches(inputs, dtype):
        try:
            expected = cast(Tensor, silent(*batch))
        except Exception as error:
            raise StageError(
                f"the model itself does not run on a batch of {len(batch[0])}, and a cut is proven on one sample and "
                f"on several: {_first_line(error)}"
            ) from error
        try:
            outputs = cast(Tensor, pruned(*batch))
        except Exception as error:
            raise CutError(
                f"the cut network does not run, as where code holds sizes or pads channels: {_first_line(error)}"
            ) from error
        if outputs.shape != expected.shape:
            raise CutError(
                f"the cut network's outputs have the shape {tuple(outputs.shape)} instead of {tuple(expected.shape)}, "
                "as where code holds sizes or pads channels"
            )
        difference = float((outputs - expected).abs().max())
        if not difference <= TOLERANCES[dtype] * max(float(expected.abs().max()), 1.0):
            raise CutError(
                f"the cut network computes something else than {what} (outputs differ by up to {difference:.2g}): {why}"
            )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _two_batches(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[list[Tensor]]:
    tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs.values()]
    yield tensors
    yield [tensor[:1] for tensor in tensors]


def _dtype(model: nn.Module, inputs: Mapping[str, Tensor]) -> torch.dtype:
    """float64 where the model's own code allows it: rounding then hides nothing."""
    batch = next(_two_batches(inputs, torch.float64))
    try:
        deepcopy(model).eval().double()(*batch)
    except Exception:  # whatever its code raises, such as for a constant in float32
        return torch.float32
    return torch.float64
