"""Operators written out in a captured graph, so that what is inside of them can be quantized like anything else."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx

_ATEN = torch.ops.aten


def write_out(graph: fx.GraphModule) -> None:
    """Put what they compute in the place of every `scaled_dot_product_attention` and every SiLU."""
    for node in list(graph.graph.nodes):
        written = _ATTENTION_OR_SILU.get(node.target)
        if written is None or _is_special(node):
            continue
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(written(_Writer(graph.graph, node)))
        graph.graph.erase_node(node)
    graph.recompile()


def _is_special(node: fx.Node) -> bool:
    """Whether it is attention that repeats its keys for groups of queries, or that drops some of its weights."""
    if node.target is not _ATEN.scaled_dot_product_attention.default:
        return False
    return bool(_argument(node, 4, "dropout_p", 0.0)) or bool(node.kwargs.get("enable_gqa", False))


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


class _Writer:
    """Makes the nodes that take a node's place; they belong to the module that it was called in."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self._graph = graph
        self.node = node

    def call(self, operator: Callable[..., Tensor], *arguments: Any) -> fx.Node:
        """One operator on nodes and numbers."""
        made = self._graph.call_function(operator, arguments)
        made.meta = {
            name: self.node.meta[name] for name in ("nn_module_stack", "stack_trace") if name in self.node.meta
        }
        made.meta["val"] = operator(*(each.meta["val"] if isinstance(each, fx.Node) else each for each in arguments))
        return made


def _attention(write: _Writer) -> fx.Node:
    """softmax(QKᵀ·scale + mask)·V (Vaswani et al. 2017, arXiv 1706.03762, §3.2.1), the scale behind the product.

    The codes of query and key are so multiplied as they come.
    """
    node, call = write.node, write.call
    query, key, value = cast(tuple[fx.Node, ...], node.args[:3])
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


def _silu(write: _Writer) -> fx.Node:
    """x·σ(x) (Elfwing et al. 2018, arXiv 1702.03118), for which runtimes have a sigmoid and a product on codes."""
    values = write.node.args[0]
    return write.call(_ATEN.mul.Tensor, values, write.call(_ATEN.sigmoid.default, values))


_ATTENTION_OR_SILU: Mapping[Any, Callable[[_Writer], fx.Node]] = {
    _ATEN.scaled_dot_product_attention.default: _attention,
    _ATEN.silu.default: _silu,
    _ATEN.silu_.default: _silu,
}
