"""Bringing pixels to zero mean and unit variance, channel by channel."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from .errors import DataError

Normalize = Literal["dataset", "imagenet", "cifar10", "none"]

CONSTANTS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of pixels in 0 to 1, in RGB order."""


@dataclass(frozen=True)
class Normalization:
    """``x * scale + shift`` with one number a channel (the axis after the batch)."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def apply(self, samples: Tensor) -> Tensor:
        """Normalised float32 samples."""
        scale, shift = _constants(self, samples.ndim, samples.device)
        # A copy always: the multiplication is in place and must not reach the stored samples.
        return samples.to(torch.float32, copy=True).mul_(scale).add_(shift)


@cache
def _constants(normalization: Normalization, ndim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift to be broadcast over samples; kept, since a copy to a GPU in every step would make it wait."""
    shape = (1, len(normalization.scale), *(1,) * (ndim - 2))
    scale, shift = (
        torch.tensor(each, device=device).view(shape) for each in (normalization.scale, normalization.shift)
    )
    return scale, shift


def normalizations_of(inputs: dict[str, Tensor], normalize: Normalize, origin: str) -> dict[str, Normalization]:
    """By input name, from the training samples; inputs of whole numbers other than uint8, such as tokens, have none."""
    return {
        name: _normalization(tensor, normalize, f"{origin}: {name}")
        for name, tensor in inputs.items()
        if tensor.ndim >= 2 and (tensor.dtype == torch.uint8 or tensor.is_floating_point())
    }


def _normalization(samples: Tensor, normalize: Normalize, name: str) -> Normalization:
    """Of samples (N, C, …). uint8 is first brought to 0 to 1."""
    unit = 1 / 255 if samples.dtype == torch.uint8 else 1.0
    channels = samples.shape[1]
    if normalize == "none":
        return Normalization((unit,) * channels, (0.0,) * channels)
    if normalize == "dataset":
        mean, deviation = _statistics(samples)
        return _from_statistics([value * unit for value in mean], [value * unit for value in deviation], unit)
    mean, deviation = CONSTANTS[normalize]
    if channels != len(mean) or samples.ndim != 4:
        raise DataError(
            f"{name} has samples of shape {tuple(samples.shape[1:])}, and `normalize: {normalize}` is for images of "
            "3 channels; use `normalize: dataset`"
        )
    if unit == 1.0 and not 0 <= float(samples.min()) <= float(samples.max()) <= 1:
        raise DataError(
            f"{name} holds numbers from {float(samples.min()):g} to {float(samples.max()):g}, and "
            f"`normalize: {normalize}` is for pixels from 0 to 1; give uint8 pixels, divide by their range, "
            "or use `normalize: dataset` or `none`"
        )
    return _from_statistics(list(mean), list(deviation), unit)


def _from_statistics(mean: list[float], deviation: list[float], unit: float) -> Normalization:
    # A channel that never changes carries nothing; it is centred and otherwise left alone.
    scale = [1 / value if value > 1e-8 else 1.0 for value in deviation]
    shift = [-centre * factor for centre, factor in zip(mean, scale, strict=True)]
    return Normalization(tuple(factor * unit for factor in scale), tuple(shift))


def _statistics(samples: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, summed in float64 piece by piece: no float copy of all is made."""
    channels = samples.shape[1]
    total = torch.zeros(channels, dtype=torch.float64)
    squares = torch.zeros(channels, dtype=torch.float64)
    for start in range(0, len(samples), 1024):
        values = samples[start : start + 1024].transpose(0, 1).reshape(channels, -1).to(torch.float64)
        total += values.sum(1)
        squares += values.square().sum(1)
    count = samples.numel() / channels
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    return [float(value) for value in mean], [float(value) for value in deviation]
