"""Weights stored in few bits by groups of inputs, each on a grid of its own; activations stay in float.

The grids are those of ONNX's blocked DequantizeLinear (opset 21), which ONNX Runtime's MatMulNBits multiplies by.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class StoredWeight:
    """A weight as an engine's file holds it: real value = scale · (code − zero point)."""

    codes: Tensor
    """(out, in), from 0."""
    scale: Tensor
    """(out, groups)."""
    zero_point: Tensor
    """(out, groups), from 0."""


@dataclass(frozen=True)
class GroupedGrid:
    """An affine grid for each group of inputs of each output, from the least to the largest of its values."""

    bits: int
    group_size: int

    @property
    def largest_code(self) -> int:
        """The smallest is 0."""
        return 2**self.bits - 1

    def rounded(self, weight: Tensor) -> Tensor:
        """The weight (out, in) on its grids; gradients pass straight through."""
        groups = self._groups(weight)
        scale, zero_point = self._scales(groups.detach())
        values = torch.fake_quantize_per_channel_affine(groups, scale, zero_point, 0, 0, self.largest_code)
        return values.reshape(len(weight), -1)[:, : weight.shape[1]]

    @torch.no_grad()
    def stored(self, weight: Tensor) -> StoredWeight:
        """The codes and grids whose values `rounded` gives."""
        rows, inputs = weight.shape
        scale, zero_point = self._scales(self._groups(weight))
        steps = (self._groups(self.rounded(weight)) / scale[:, None]).round()
        codes = (steps + zero_point[:, None]).to(torch.uint8)
        return StoredWeight(
            codes=codes.reshape(rows, -1)[:, :inputs].contiguous(),
            scale=scale.reshape(rows, -1),
            zero_point=zero_point.to(torch.uint8).reshape(rows, -1),
        )

    def _groups(self, weight: Tensor) -> Tensor:
        """(out, in) as (out · groups, group size), the last group of each row filled up with zeros."""
        inputs = weight.shape[1]
        missing = math.ceil(inputs / self.group_size) * self.group_size - inputs
        return functional.pad(weight, (0, missing)).reshape(-1, self.group_size)

    def _scales(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """And zero points; zero is always on the grid."""
        low, high = groups.amin(1).clamp(max=0.0), groups.amax(1).clamp(min=0.0)
        scale = ((high - low) / self.largest_code).clamp(min=torch.finfo(torch.float32).eps)
        return scale, (-low / scale).round().to(torch.int32)


@torch.library.custom_op("potstill::dequantize_groups", mutates_args=())
def dequantize_groups(codes: Tensor, scale: Tensor, zero_point: Tensor, group_size: int) -> Tensor:
    """The weight (out, in) of its codes; one operator, so that the exporter finds it."""
    scales, zeros = (each.repeat_interleave(group_size, 1)[:, : codes.shape[1]] for each in (scale, zero_point.float()))
    return (codes.float() - zeros) * scales


@dequantize_groups.register_fake  # pyright: ignore[reportUnknownMemberType] - untyped in torch
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, group_size: int) -> Tensor:  # pyright: ignore[reportUnusedFunction]
    return torch.empty_like(codes, dtype=torch.float32)


def dequantize_linear(codes: Any, scale: Any, zero_point: Any, group_size: int) -> Any:
    """`dequantize_groups` as ONNX's own operator, for torch's exporter."""
    from onnxscript import opset21 as operators  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, operators).DequantizeLinear(codes, scale, zero_point, axis=1, block_size=group_size)
