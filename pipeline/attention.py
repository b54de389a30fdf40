"""Attention written out in a captured graph, so that its two products can be quantized like any other."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten


def write_out_attention(graph: fx.GraphModule) -> None:
    """Put products, scale, mask and softmax in the place of every `scaled_dot_product_attention`.

    softmax(QKᵀ·scale + mask)·V (Vaswani et al. 2017, arXiv 1706.03762, §3.2.1), the scale behind the product, so that
    the codes of query and key are multiplied as they come. Attention that repeats its keys for groups of queries, or
    that drops some of its weights, stays one operator.
    """
    for node in list(graph.graph.nodes):
        if node.target is _ATEN.scaled_dot_product_attention.default and not _is_special(node):
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(_written_out(graph.graph, node))
            graph.graph.erase_node(node)
    graph.recompile()


def _is_special(node: fx.Node) -> bool:
    return bool(_argument(node, 4, "dropout_p", 0.0)) or bool(node.kwargs.get("enable_gqa", False))


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _written_out(graph: fx.Graph, node: fx.Node) -> fx.Node:
    query, key, value = cast(tuple[fx.Node, ...], node.args[:3])

    def call(operator: Callable[..., Tensor], *arguments: Any) -> fx.Node:
        made = graph.call_function(operator, arguments)
        made.meta = {name: node.meta[name] for name in ("nn_module_stack", "stack_trace") if name in node.meta}
        made.meta["val"] = operator(*(each.meta["val"] if isinstance(each, fx.Node) else each for each in arguments))
        return made

    scale = node.kwargs.get("scale")
    scores = call(_ATEN.matmul.default, query, call(_ATEN.transpose.int, key, -2, -1))
    scores = call(_ATEN.mul.Tensor, scores, query.meta["val"].shape[-1] ** -0.5 if scale is None else scale)
    mask = _argument(node, 3, "attn_mask", None)
    if _argument(node, 5, "is_causal", False):
        rows, columns = scores.meta["val"].shape[-2:]
        later = call(_ATEN.full.default, [rows, columns], float("-inf"))
        scores = call(_ATEN.add.Tensor, scores, call(_ATEN.triu.default, later, 1))
    elif mask is not None and mask.meta["val"].dtype == torch.bool:
        hidden = call(_ATEN.logical_not.default, mask)
        scores = call(_ATEN.masked_fill.Scalar, scores, hidden, float("-inf"))
    elif mask is not None:
        scores = call(_ATEN.add.Tensor, scores, mask)
    return call(_ATEN.matmul.default, call(_ATEN.softmax.int, scores, -1), value)
