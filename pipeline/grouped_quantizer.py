"""The fake quantizer of weights in groups, and its conversion to stored codes.

Importing this module imports torchao, which takes a second or two: import it where it is used.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, fx

from .grouped_weights import GroupedGrid
from .quiet import quiet

with quiet("torchao", "torch.utils._pytree"):
    from torchao.quantization.pt2e import FakeQuantizeBase  # pyright: ignore[reportMissingTypeStubs]


class GroupedWeightQuantizer(FakeQuantizeBase):
    """Rounds a linear layer's weight to its grids, which follow the weight's values."""

    def __init__(self, *, bits: Literal[4, 8], group_size: int, **_: Any) -> None:
        super().__init__()
        self.rounds = True
        self.grid = GroupedGrid(bits=bits, group_size=group_size)
        self.dtype, self.qscheme, self.ch_axis = torch.uint8, torch.per_channel_affine, 0
        self.quant_min, self.quant_max = 0, self.grid.largest_code

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - untyped in torchao
        """The weight `x` (out, in) on its grids."""
        return self.grid.rounded(x) if self.rounds else x

    def calculate_qparams(  # pyright: ignore[reportIncompatibleMethodOverride] - untyped in torchao
        self, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Never asked for: `store_weights` converts these before torchao does the others."""
        raise AssertionError("torchao has no form for weights in groups")


def store_weights(graph: fx.GraphModule) -> None:
    """Put codes, grids and their dequantization in the place of every quantizer of a weight in groups."""
    for node in list(graph.graph.nodes):
        quantizer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(quantizer, GroupedWeightQuantizer):
            continue
        weight = cast(fx.Node, node.args[0])
        stored = quantizer.grid.stored(graph.get_parameter(str(weight.target)))
        parts: list[fx.Node] = []
        with graph.graph.inserting_before(node):
            for name in ("codes", "scale", "zero_point"):
                graph.register_buffer(f"{weight.name}_{name}", getattr(stored, name))
                parts.append(graph.graph.get_attr(f"{weight.name}_{name}"))
            dequantized = graph.graph.call_function(
                torch.ops.potstill.dequantize_groups.default, (*parts, quantizer.grid.group_size)
            )
        node.replace_all_uses_with(dequantized)
        graph.graph.erase_node(node)
    graph.recompile()
