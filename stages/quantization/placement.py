"""Which tensors to quantize so that ONNX Runtime's CPU kernels fuse every layer.

The rules are those of its QDQ fusion (onnxruntime/core/optimizer/qdq_transformer): a convolution becomes QLinearConv
when its input, its weight and its output, or that of the ReLU behind it, each sit behind one quantizer; an addition or
product becomes QLinearAdd or QLinearMul when both inputs and the output do, a sigmoid QLinearSigmoid, a SiLU both of
these. Hard-swish, GELU and LayerNorm have no integer kernel: they run in float between two quantizers, and the layers
around them stay in int8.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from ...pipeline.quantization import Quantization, module_path, operator_name, tensor_names

LAYERS = frozenset({"conv1d", "conv2d", "conv_transpose2d", "linear"})
RECTIFIERS = frozenset({"relu", "relu6", "hardtanh", "clamp"})
"""Activations that a uint8 grid from zero makes redundant, so the layer before them needs no quantizer of its own."""
PRODUCTS = frozenset({"matmul", "bmm"})
"""Of two activations, as in attention; the runtime multiplies in int8 and goes on in float, which the scaling, mask and
softmax behind it are in anyway."""
POOLS = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean"})
SAME_VALUES = frozenset(
    {
        *("flatten", "unflatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze"),
        *("slice", "select", "dropout", "contiguous", "max_pool2d"),
    }
)
"""Operators whose outputs are values of their input; they run on its codes as they are."""
PARTS = frozenset({"chunk", "split", "split_with_sizes", "unbind"})
"""Operators that give several tensors, each of which holds values of their input."""


@dataclass(frozen=True)
class Placement:
    """The tensors to quantize, by name and in the order of the graph."""

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    shared: dict[str, str] = field(default_factory=dict[str, str])


def placed(graph: fx.GraphModule, asked: Quantization) -> Placement:
    """The placement that `asked` says, by its scheme and the modules it leaves in float."""
    if asked.group_size is None:
        return place(graph, asked.float_layers)
    return Placement(weights=tuple(wide_weights(graph, asked.group_size, asked.float_layers)[0]), activations=())


def wide_weights(
    graph: fx.GraphModule, group_size: int, floats: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The weights to store in groups, and why those of other linear layers stay as they are, by module.

    A layer narrower than a group would store more scales than it saves, and an embedding looks its rows up in float.
    """
    names = tensor_names(graph)
    weights: dict[str, None] = {}
    left: dict[str, str] = {}
    for node in graph.graph.nodes:
        if operator_name(node) != "linear" or _is_within(node, floats):
            continue
        weight = node.args[1]
        if any(operator_name(reader) != "linear" or reader.args[1] is not weight for reader in weight.users):
            left[module_path(node)] = "its weight is read by another kind of layer, too"
        elif (inputs := weight.meta["val"].shape[1]) < group_size:
            left[module_path(node)] = f"its {inputs} inputs are fewer than a group of {group_size}"
        else:
            weights[names[weight]] = None
    return list(weights), left


def place(graph: fx.GraphModule, floats: Collection[str] = ()) -> Placement:
    """The placement for a captured graph whose batch norms are folded, with nothing for the modules in `floats`."""
    names = tensor_names(graph)
    weights: list[str] = []
    wanted: set[fx.Node] = set()
    for node in graph.graph.nodes:
        operator = operator_name(node)
        if _is_within(node, floats):
            continue
        if _is_layer(node):
            weight = node.args[1]
            if names[weight] not in weights:
                weights.append(names[weight])
            wanted |= {node.args[0], _rectified(node)}
        elif operator in ("add", "mul") and _joins_activations(node) and not _masks(node):
            wanted |= {node.args[0], node.args[1], _rectified(node)}
        elif operator in PRODUCTS and _joins_activations(node):
            wanted |= {node.args[0], node.args[1]}
        elif operator == "cat":
            wanted |= {*node.args[0], node}
        elif operator in POOLS or operator == "sigmoid":
            wanted |= {node.args[0], node}
    # A tensor that only moves the values of another one lies on its grid, and asks for that grid to exist.
    owners = {_grid_owner(node) for node in wanted}
    moved = [node for node in graph.graph.nodes if _moved_by(node) is not None and _grid_owner(node) in owners]
    return Placement(
        weights=tuple(weights),
        activations=tuple(names[node] for node in graph.graph.nodes if node in owners),
        shared={names[node]: names[_grid_owner(node)] for node in moved},
    )


def layer_paths(graph: fx.GraphModule, asked: Quantization) -> list[str]:
    """The modules with a layer that `placed` quantizes, in the order they first run."""
    names, weights = tensor_names(graph), placed(graph, asked).weights
    layers = (node for node in graph.graph.nodes if _is_layer(node) and not _is_within(node, asked.float_layers))
    return list(dict.fromkeys(module_path(node) for node in layers if names[node.args[1]] in weights))


def _is_layer(node: fx.Node) -> bool:
    """Whether an integer kernel can run it: a transposed convolution only as the convolution that it is made into."""
    if operator_name(node) != "conv_transpose2d":
        return operator_name(node) in LAYERS
    strides, dilations = (node.args[at] if len(node.args) > at else [1, 1] for at in (3, 7))
    assert isinstance(strides, Sequence)
    assert isinstance(dilations, Sequence)
    return len(set(strides)) == 1 and set(dilations) == {1}


def _is_within(node: fx.Node, paths: Collection[str]) -> bool:
    own = module_path(node)
    return any(own == path or own.startswith(f"{path}.") for path in paths)


def _rectified(node: fx.Node) -> fx.Node:
    """The tensor to quantize behind a layer or an addition: the output of the ReLU that alone reads it, or its own."""
    readers = list(node.users)
    if len(readers) == 1 and operator_name(readers[0]) in RECTIFIERS:
        return readers[0]
    return node


def _masks(node: fx.Node) -> bool:
    """Whether an addition puts attention's mask on: its -10,000 or -inf would leave the scores no steps of the grid."""
    return all(operator_name(reader) == "softmax" for reader in node.users)


def _joins_activations(node: fx.Node) -> bool:
    """Whether both operands are computed floats: not a constant, nor a batch norm's integer counter."""
    return all(
        isinstance(operand, fx.Node)
        and operand.op != "get_attr"
        and isinstance(operand.meta.get("val"), torch.Tensor)
        and operand.meta["val"].is_floating_point()
        for operand in node.args[:2]
    )


def _grid_owner(node: fx.Node) -> fx.Node:
    """The tensor whose values `node` holds: itself, or what stands before operators that only move values."""
    while (source := _moved_by(node)) is not None:
        node = source
    return node


def _moved_by(node: fx.Node) -> fx.Node | None:
    """The tensor whose values `node` moves or picks; None where it computes its own."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op == "call_module":  # a front end, whose own output has no grid
        return None
    if operator_name(node) in SAME_VALUES:
        return source
    if operator_name(node) == "getitem" and operator_name(source) in PARTS:
        whole = source.args[0]
        assert isinstance(whole, fx.Node)
        return whole
    return None
