"""Tensors rounded to integer grids in a few passes over memory, with gradients straight through.

torch's own fake quantizers compute the same bits, on a CPU one value after another: seven times as long.
"""

from typing import Any, cast

import torch
from torch import Tensor


def rounded(values: Tensor, scale: Tensor, zero_point: Tensor | None, lowest: int, highest: int) -> Tensor:
    """What a grid of the codes `lowest` to `highest` makes of `values`, in their dtype: scale · (code - zero point).

    Scale and zero point are broadcast against the values; None is a zero point of 0. The gradient passes where the
    code is on the grid, and is zero where it was clipped (Bengio et al. 2013, arXiv 1308.3432).
    """
    if values.is_cuda and zero_point is not None:
        # On a GPU torch's kernel goes over memory once, and passes are what costs.
        return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, lowest, highest).to(
            values.dtype
        )
    return cast(Tensor, cast(Any, _Rounded).apply(values, scale, zero_point, lowest, highest))


def in_memory_order(values: Tensor) -> Tensor:
    """The same numbers in the order they lie in memory, which reductions over all of them are faster in."""
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1)
    return values


def scaled(values: Tensor, scale: Tensor) -> Tensor:
    """Values by scale, in float32 and in a tensor of its own."""
    # A copy in float32 is the only tensor that is made: memory that is touched first costs more than arithmetic.
    inverse = scale.reciprocal()
    return values * inverse if values.dtype == torch.float32 else values.float().mul_(inverse)


def shifted(steps: Tensor, zero_point: Tensor | None) -> Tensor:
    """The codes of whole steps from zero, in place."""
    return steps if zero_point is None else steps.add_(zero_point)


def clipped(codes: Tensor, zero_point: Tensor | None, lowest: int, highest: int) -> Tensor:
    """The steps from zero of codes that are clipped to the grid, in place."""
    codes.clamp_(lowest, highest)
    return codes if zero_point is None else codes.sub_(zero_point)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it by `*args`
        ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor | None, lowest: int, highest: int
    ) -> Tensor:
        codes = shifted(scaled(values, scale).round_(), zero_point)
        if ctx.needs_input_grad[0]:
            # Exact up to 256 in bfloat16, and what lies beyond the grid's ends stays beyond them.
            ctx.save_for_backward(codes.to(torch.bfloat16))
            ctx.ends = lowest - 0.5, highest + 0.5
        return clipped(codes, zero_point, lowest, highest).mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (codes,) = ctx.saved_tensors
        return inside(gradient, codes.to(gradient.dtype), *ctx.ends), None, None, None, None


def inside(gradient: Tensor, codes: Tensor, low: float, high: float) -> Tensor:
    """The gradient where low < code < high, zero elsewhere; one pass, and differentiable itself."""
    return cast(Tensor, torch.ops.aten.hardtanh_backward(gradient, codes, low, high))
