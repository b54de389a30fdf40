"""A fake-quantized model that rounds to fp8 instead of int8: what a graph with fp8 codes is compared with.

Importing this module imports torchao, which takes a second or two: import it where it is used.
"""

import torch
from torch import Tensor

from ...pipeline.fake_quantization import ActivationQuantizer, FakeQuantizedModel, WeightQuantizer
from ...pipeline.grouped_quantizer import GroupedWeightQuantizer
from .e4m3 import LARGEST_CODE, LARGEST_INT8_CODE


class E4M3Activation(ActivationQuantizer):
    """Rounds an activation to fp8, over the range of its symmetric int8 grid."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation `x` on its grid; without gradients."""
        return _rounded(x, self.scale * LARGEST_INT8_CODE / LARGEST_CODE) if self.rounds else x


class E4M3Weight(WeightQuantizer):
    """Rounds a weight to fp8, with one scale for all of it."""

    def forward(self, x: Tensor) -> Tensor:
        """The weight `x` on its grid; without gradients."""
        amax = x.abs().amax() if self.follows else self.held().amax() * self.largest_code
        return _rounded(x, amax / LARGEST_CODE) if self.rounds else x


def turn_to_e4m3(model: FakeQuantizedModel) -> None:
    """Let every quantizer of a model on symmetric int8 grids round to fp8 over the same range."""
    model.replace_quantizers(_in_e4m3)


def _in_e4m3(
    quantizer: ActivationQuantizer | WeightQuantizer | GroupedWeightQuantizer,
) -> ActivationQuantizer | WeightQuantizer | GroupedWeightQuantizer:
    assert not isinstance(quantizer, GroupedWeightQuantizer)  # of other schemes than int8
    if isinstance(quantizer, WeightQuantizer):
        weight = E4M3Weight(bits=quantizer.bits, axis=quantizer.axis)
        if not quantizer.follows:
            weight.hold(quantizer.held())
        return weight
    activation = E4M3Activation(grids=quantizer.grids)
    activation.load_state_dict(quantizer.state_dict())
    return activation


def _rounded(values: Tensor, scale: Tensor) -> Tensor:
    # torch's own conversion makes NaN of what is beyond the largest number.
    codes = (values.float() / scale).clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.float8_e4m3fn)
    return (codes.to(torch.float32) * scale).to(values.dtype)
