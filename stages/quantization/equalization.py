"""Cross-layer equalization: channels of neighbouring layers brought to one range, the function left as it is.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv 1906.04721, §4.1.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from ...pipeline.quantization import capture, module_path, operator_name
from ..stage import Context

EQUALIZED = frozenset({"conv1d", "conv2d", "linear"})
"""Layers whose weights are (out, in, …)."""
HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "dropout", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"})
"""Operators that a positive factor of a channel passes through: f(s·x) = s·f(x) for every s > 0."""
SATURATING = frozenset({"relu6", "hardtanh", "clamp"})
SWEEPS = 50
"""More than any chain of layers needs: a depthwise convolution between two others takes about ten."""
SETTLED = 1e-4
"""How near to one all factors of a sweep are when it was the last one."""
TOLERANCE = 1e-4
"""What the outputs may differ by, as a share of the largest one: float32 sums of other terms."""


@dataclass(frozen=True)
class Pair:
    """Two layers with nothing between them that would not let a channel's factor through."""

    first: str
    second: str
    repeat: int = 1
    """How many inputs of the second layer each channel of the first one feeds: pixels, behind a flatten."""


@dataclass(frozen=True)
class Pairs:
    """What can be equalized in a model, and what not."""

    pairs: tuple[Pair, ...]
    left: dict[str, str]
    """Layers whose outputs stay as they are, each with the reason."""


def equalized(model: nn.Module, context: Context) -> nn.Module:
    """A copy that computes the same with the channels of its pairs equalized; the given model where that fails."""
    example = context.data.example()
    found = equalizable(capture(model, example))
    context.journal.fact("equalized pairs", [f"{pair.first} → {pair.second}" for pair in found.pairs])
    context.journal.fact("not equalized", found.left)
    copy = deepcopy(model).eval()
    equalize(copy, found.pairs)
    difference, largest = _difference(model, copy, example)
    context.journal.fact("equalization changed outputs by", difference)
    if difference <= TOLERANCE * largest:
        return copy
    undone = f"equalization undone: outputs would differ by {difference:g}, the largest being {largest:g}"
    context.journal.fact("equalization undone", undone)
    context.progress.say(f"{context.step}: {undone}")
    return model


def equalizable(graph: fx.GraphModule) -> Pairs:
    """The pairs of a captured graph, in its order."""
    pairs: list[Pair] = []
    left: dict[str, str] = {}
    for node in graph.graph.nodes:
        if operator_name(node) in EQUALIZED:
            found = _partner(node)
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                left[module_path(node)] = found
    return Pairs(tuple(pairs), left)


@torch.no_grad()
def equalize(model: nn.Module, pairs: tuple[Pair, ...]) -> None:
    """Rescale the layers of the pairs in place, one pair after another until no range moves any more.

    A channel with weights of the largest magnitude r1 in the first layer and r2 in the second is divided by
    s = √(r1·r2) / r2 in the first and multiplied by it in the second; both then have √(r1·r2). Three layers with a
    depthwise one in the middle so come to (r1·r2·r3)^⅓. A channel without weights keeps its values, and none is
    divided by so little that its bias would become the layer's largest: activations have one grid a tensor.
    """
    exact = deepcopy(model).double()
    for _ in range(SWEEPS):
        factors = [_equalize(exact.get_submodule(pair.first), exact.get_submodule(pair.second), pair) for pair in pairs]
        if all(float((factor.log()).abs().max()) < SETTLED for factor in factors):
            break
    touched = {path for pair in pairs for path in (pair.first, pair.second)}
    for path in touched:
        model.get_submodule(path).load_state_dict(exact.get_submodule(path).state_dict())


def _equalize(first: nn.Module, second: nn.Module, pair: Pair) -> Tensor:
    assert isinstance(first, nn.Conv1d | nn.Conv2d | nn.Linear)
    assert isinstance(second, nn.Conv1d | nn.Conv2d | nn.Linear)
    weight = second.weight
    # (groups, out of a group, inputs of a group, taps of the kernel); a view, so that it can be scaled in place.
    groups = 1 if isinstance(second, nn.Linear) else second.groups
    grouped = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    mine = first.weight.abs().flatten(1).amax(1)
    theirs = grouped.abs().amax((1, 3)).view(-1, pair.repeat).amax(1)
    factor = torch.where((mine > 0) & (theirs > 0), (mine / theirs).sqrt(), 1.0)
    if first.bias is not None and float(first.bias.abs().max()) > 0:
        factor = factor.maximum((first.bias.abs() / first.bias.abs().max()).minimum(torch.ones_like(factor)))
    first.weight.div_(factor.view(-1, *(1,) * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(factor)
    grouped.mul_(factor.repeat_interleave(pair.repeat).view(groups, 1, -1, 1))
    return factor


def _partner(layer: fx.Node) -> Pair | str:
    """The pair that a layer begins, or why it begins none."""
    if not _is_alone(layer):
        return "its weights are used more than once"
    axis, repeat = _channel_axis(layer, layer), 1
    source, node = layer, next(iter(layer.users))
    while not (operator_name(node) in EQUALIZED and node.args[0] is source):
        if len(source.users) != 1:
            return "its output has several readers"
        problem = _stops(node, source, axis)
        if problem is not None:
            return problem
        if operator_name(node) == "flatten":
            repeat *= _shape(source)[2:].numel()
        source, node = node, next(iter(node.users))
    if len(source.users) != 1:
        return "its output has several readers"
    if not _is_alone(node):
        return f"the weights of {module_path(node)} behind it are used more than once"
    if axis != _channel_axis(node, source):
        return f"{module_path(node)} behind it reads along another axis"
    return Pair(module_path(layer), module_path(node), repeat)


def _stops(node: fx.Node, source: fx.Node, axis: int) -> str | None:
    """Why a factor of a channel, which lies along `axis` of the source, does not pass the node; None where it does."""
    name = operator_name(node)
    if name in HOMOGENEOUS:
        return None
    if name in SATURATING:
        return f"{name} saturates at a fixed value, which a factor would move"
    # Behind both, the channels still lie along the first axis after the batch's.
    if name == "flatten" and axis == 1 and len(_shape(node)) == 2:
        return None
    if name == "mean" and axis == 1 and len(_shape(node)) > 1 and _shape(node)[1] == _shape(source)[1]:
        return None
    return "nothing follows it" if node.op == "output" else f"{name or node.op} follows it"


def _channel_axis(layer: fx.Node, tensor: fx.Node) -> int:
    """Along which axis of its input or output a layer has its channels."""
    return len(_shape(tensor)) - 1 if operator_name(layer) == "linear" else 1


def _shape(node: fx.Node) -> torch.Size:
    return cast(Tensor, node.meta["val"]).shape


def _is_alone(layer: fx.Node) -> bool:
    """Whether the layer's weights are its module's own, and run once."""
    parameters = zip(("weight", "bias"), layer.args[1:3], strict=False)
    return all(
        parameter is None
        or (
            isinstance(parameter, fx.Node)
            and parameter.target == f"{module_path(layer)}.{name}"
            and len(parameter.users) == 1
        )
        for name, parameter in parameters
    )


@torch.no_grad()
def _difference(before: nn.Module, after: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[float, float]:
    expected = before(*inputs.values())
    return float((after(*inputs.values()) - expected).abs().max()), float(expected.abs().max())
