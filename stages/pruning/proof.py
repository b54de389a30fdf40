"""The proof that a cut removed what it claims and nothing else, without Torch-Pruning's help."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from .graph import Cut

TOLERANCE = 1e-3
"""Of the largest output. Sums of fewer terms round otherwise by about 1e-6 of it; a wrong channel is far off."""


def doubt(original: nn.Module, cut: Cut, inputs: Mapping[str, Tensor]) -> str | None:
    """What speaks against the cut, in a sentence; None when it is proven on `inputs`, a batch of two or more.

    Three facts: every weight is the original's at the kept indices; outputs have the original's shape for two batch sizes;
    and they equal the original's with the removed channels silenced where they are made and where they are read.
    """
    problem = _copy_problem(original, cut)
    if problem is not None:
        return problem
    for size in (len(next(iter(inputs.values()))), 1):
        batch = {name: tensor[:size] for name, tensor in inputs.items()}
        expected = silenced_outputs(original, cut, batch)
        try:
            outputs = _outputs(cut.model, batch)
        except (RuntimeError, ValueError, IndexError) as error:
            return f"it does not run any more: {str(error).splitlines()[0]}"
        if outputs.shape != expected.shape:
            return f"its outputs have the shape {tuple(outputs.shape)}, where {tuple(expected.shape)} was expected"
        difference = float((outputs - expected).abs().max())
        if not difference <= TOLERANCE * float(expected.abs().max()):
            return (
                "it computes something else than the original with the removed channels silenced: outputs differ by up "
                f"to {difference:.3g}, where the largest is {float(expected.abs().max()):.3g}"
            )
    return None


def silenced_outputs(original: nn.Module, cut: Cut, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the original computes when the channels that the cut claims to have removed are zero.

    They are zeroed in the outputs of the layers that lost them, and, since a bias or an activation such as sigmoid may
    have raised them again, in the inputs of the layers that no longer read them.
    """
    silenced = deepcopy(original)
    for path, kept in cut.kept_out.items():
        silenced.get_submodule(path).register_forward_hook(_output_silencer(kept))
    for path, kept in cut.kept_in.items():
        silenced.get_submodule(path).register_forward_pre_hook(_input_silencer(kept))
    return _outputs(silenced, inputs)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    return cast(Tensor, model.eval()(*inputs.values()))


def _output_silencer(kept: Sequence[int]) -> Any:
    def silence(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return _masked(module, output, kept)

    return silence


def _input_silencer(kept: Sequence[int]) -> Any:
    def silence(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_masked(module, arguments[0], kept), *arguments[1:])

    return silence


def _masked(module: nn.Module, values: Tensor, kept: Sequence[int]) -> Tensor:
    axis = values.ndim - 1 if isinstance(module, nn.Linear) else 1
    mask = torch.zeros(values.shape[axis], dtype=values.dtype, device=values.device)
    mask[list(kept)] = 1
    # Not a product: an infinite or undefined value in a removed channel is silent too.
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    return torch.where(mask.reshape(shape) == 1, values, torch.zeros((), dtype=values.dtype, device=values.device))


def _copy_problem(original: nn.Module, cut: Cut) -> str | None:
    pruned = cut.model.state_dict()
    for name, tensor in original.state_dict().items():
        path, _, kind = name.rpartition(".")
        layer = original.get_submodule(path)
        expected = _expected(layer, tensor, cut.kept_out.get(path), cut.kept_in.get(path), is_weight=kind == "weight")
        if expected is None or name not in pruned or not torch.equal(pruned[name], expected):
            return f"`{name}` is not the original one without the removed channels"
    return None


def _expected(
    layer: nn.Module, tensor: Tensor, out: Sequence[int] | None, into: Sequence[int] | None, *, is_weight: bool
) -> Tensor | None:
    """The tensor at its kept indices; None where a grouped convolution would have to lose other inputs in each group."""
    if tensor.ndim == 0:
        return tensor
    kept = tensor if out is None else tensor[list(out)]
    if into is None or not is_weight:
        return kept
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    width, per_group = tensor.shape[1], len(into) // groups
    first = list(into[:per_group])
    if list(into) != [group * width + channel for group in range(groups) for channel in first]:
        return None
    return kept[:, first]
