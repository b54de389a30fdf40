"""Step sizes that are trained with the model, by the gradient of the rounding itself.

LSQ (Esser et al. 2020, arXiv 1902.08153) for weights and rectified activations, LSQ+ (Bhalgat et al. 2020, arXiv
2004.09576) for activations with an offset. Importing this module imports torchao.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .fake_quantization import ActivationQuantizer, FakeQuantizedModel, WeightQuantizer
from .grouped_quantizer import GroupedWeightQuantizer
from .quantization import ACTIVATION_LEVELS, ActivationRange, Grids
from .rounding import clipped, in_memory_order, inside, scaled, shifted


@torch.no_grad()
def learn_steps(model: FakeQuantizedModel, inputs: Mapping[str, Tensor]) -> None:
    """Let the model's grids be parameters of it from now on, which start as they stand; `inputs` is an example batch.

    `quantization_of` and `float_state` give what was learned.
    """
    model(*inputs.values())  # the weights' scales follow the weights on each call
    model.replace_quantizers(_learned)


def _learned(
    quantizer: ActivationQuantizer | WeightQuantizer | GroupedWeightQuantizer,
) -> "LearnedWeight | LearnedActivation":
    if isinstance(quantizer, WeightQuantizer):
        return LearnedWeight(quantizer)
    assert isinstance(quantizer, ActivationQuantizer)  # the stage refuses to learn the grids of weights in groups
    return LearnedActivation(quantizer.range(), quantizer.grids)


class LearnedActivation(ActivationQuantizer):
    """Rounds one activation to a uint8 grid whose scale, and zero point unless it is 0, are learned."""

    def __init__(self, start: ActivationRange, grids: Grids = "affine") -> None:
        """A grid that starts at zero point 0 keeps it: it is that of a rectified activation, which kernels fuse.

        So do symmetric grids theirs.
        """
        super().__init__(grids=grids)
        self.set_range(start)
        self._zero_point = start.zero_point
        learns_offset = grids == "affine" and start.zero_point > 0
        below = 0 if learns_offset else start.zero_point
        self._ends = -below, ACTIVATION_LEVELS - below
        self.step = nn.Parameter(self.scale.clone())
        self.offset: nn.Parameter | None
        self.register_parameter("offset", nn.Parameter(self.low.view(1).clone()) if learns_offset else None)

    def forward(self, x: Tensor) -> Tensor:
        """The activation `x` on its grid, in its own dtype; the gradients are those of LSQ+."""
        if not self.rounds:
            return x
        return _on_grid(x, self.step, self.offset, *self._ends, num_values=x[0].numel())

    def range(self) -> ActivationRange:
        """The grid as it stands."""
        scale, zero_point = grid_of(self.step.detach(), self.offset, *self._ends)
        return ActivationRange(
            scale=float(scale), zero_point=self._zero_point if zero_point is None else int(zero_point)
        )


class LearnedWeight(WeightQuantizer):
    """Rounds a weight to int8 with one learned scale an output channel; what lies beyond the last code is clipped."""

    def __init__(self, start: WeightQuantizer) -> None:
        super().__init__(bits=start.bits, axis=start.axis)
        self.hold(start.scale)
        self.step = nn.Parameter(self.scale.clone())

    def forward(self, x: Tensor) -> Tensor:
        """The weight `x` on its grid; the gradients are those of LSQ."""
        if not self.rounds:
            return x
        step, of_channel = self.along_channels(self.step, x), x.numel() // len(self.step)
        return _on_grid(x, step, None, -self.largest_code, self.largest_code, num_values=of_channel)

    def held(self) -> Tensor:
        """The scales as they stand."""
        return grid_of(self.step.detach(), None, -self.largest_code, self.largest_code)[0]


def grid_of(step: Tensor, offset: Tensor | None, lowest: int, highest: int) -> tuple[Tensor, Tensor | None]:
    """The scale and the integer zero point that parameters stand for; zero is always a value of the grid."""
    scale = step.clamp(min=torch.finfo(torch.float32).eps)
    if offset is None:
        return scale, None
    return scale, (-offset.detach() / scale).round().clamp(lowest, highest)


def _on_grid(
    values: Tensor, step: Tensor, offset: Tensor | None, lowest: int, highest: int, *, num_values: int
) -> Tensor:
    """The values on the grid; `num_values` share the step in one sample, which tempers its gradient (LSQ §2.2)."""
    gain = (num_values * highest) ** -0.5
    return cast(Tensor, cast(Any, _OnLearnedGrid).apply(values, step, offset, lowest, highest, gain))


class _OnLearnedGrid(torch.autograd.Function):
    """With v = value / step + zero point and its code c, clipped to the ends of the grid, the derivatives are

    ∂/∂step = c - v inside the grid and c beyond it, ∂/∂offset = 0 inside and 1 beyond, ∂/∂value = 1 inside and 0
    beyond: those of step · c + offset. All follow from c - v, which is a half at most where nothing is clipped.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it by `*args`
        ctx: Any, values: Tensor, step: Tensor, offset: Tensor | None, lowest: int, highest: int, gain: float
    ) -> Tensor:
        scale, zero_point = grid_of(step, offset, lowest, highest)
        exact = scaled(values, scale)
        steps = clipped(shifted(exact.round(), zero_point), zero_point, lowest, highest)
        errors = torch.sub(steps, exact, out=exact).to(values.dtype)
        ctx.save_for_backward(errors, scale)
        ctx.ends, ctx.gain, ctx.has_offset = (lowest, highest), gain, offset is not None
        return steps.mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        errors, scale = ctx.saved_tensors
        lowest, highest = ctx.ends
        errors = errors.to(gradient.dtype)
        half = 0.5 + torch.finfo(gradient.dtype).eps / 2  # the number behind a half, the first one beyond the grid
        passed = inside(gradient, errors, -half, half)
        of_offset = None
        with torch.no_grad():
            terms = passed * errors
            of_step = _summed(terms, scale)
            above = _summed(_inside(gradient, errors, -math.inf, -0.5, out=terms), scale)
            of_step += highest * above
            if lowest or ctx.has_offset:
                below = _summed(_inside(gradient, errors, 0.5, math.inf, out=terms), scale)
                of_step += lowest * below
                of_offset = ctx.gain * (above + below) if ctx.has_offset else None
        return passed, ctx.gain * of_step, of_offset, None, None, None


def _inside(gradient: Tensor, errors: Tensor, low: float, high: float, *, out: Tensor) -> Tensor:
    """The gradient where low < error < high, in the memory of a tensor that has served."""
    return torch.ops.aten.hardtanh_backward.grad_input(gradient, errors, low, high, grad_input=out)


def _summed(gradients: Tensor, scale: Tensor) -> Tensor:
    """The sum over all values that share a scale."""
    if scale.numel() == 1:
        return in_memory_order(gradients).sum().float().view(scale.shape)
    return gradients.float().sum_to_size(scale.shape)
