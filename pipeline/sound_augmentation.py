"""Random changes of whole batches of training clips, on whatever device the batch lies.

Drawn like those of images, for all samples of a split at once and from the view alone. What SpecAugment (Park et al.
2019, arXiv 1904.08779) does to a map of time and frequency is done to the waveform, so that every model, with a front
end or without, sees the same.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .augmentation import View
from .seeding import generator

SoundAugmentation = Literal["time_shift", "volume", "noise", "time_mask", "frequency_mask"]
"""The changes; where several are asked for, they come in this order:

- `time_shift`: the clip moves by up to a tenth of its length, either way, and zeros come in (as in Warden 2018, arXiv
  1804.03209).
- `volume`: louder or softer by up to 6 dB.
- `noise`: white noise, 5 to 40 dB below the clip's own mean power.
- `time_mask`: up to a tenth of the clip is silent.
- `frequency_mask`: up to an eighth of the frequencies are missing.
"""

SHIFT, DECIBELS = 0.1, 6.0
LEAST_SNR, MOST_SNR = 5.0, 40.0
TIME_MASK, FREQUENCY_MASK = 0.1, 0.125
NOISE_SAMPLES = 2**17
"""Of the noise that is drawn for a view; each clip is given a part of it that begins at random, and goes round."""


@dataclass(frozen=True)
class SoundDraws:
    """How a view changes each clip; all are from 0 to 1, (N,)."""

    shift: Tensor
    volume: Tensor
    snr: Tensor
    masks: Tensor
    """Where and how wide: of the time mask, then of the frequency mask; (4, N)."""
    noise_start: Tensor
    noise: Tensor
    """Of unit power, the same for all clips; (NOISE_SAMPLES,)."""

    @classmethod
    def of(cls, view: View, count: int) -> "SoundDraws":
        """The draws for `count` samples."""
        source = generator(view.seed, "sound view", view.number)
        shift, volume, snr, *masks, noise_start = torch.rand(8, count, generator=source)
        return cls(shift, volume, snr, torch.stack(masks), noise_start, torch.randn(NOISE_SAMPLES, generator=source))

    def at(self, index: Tensor) -> "SoundDraws":
        """The draws of some samples."""
        shift, volume, snr = self.shift[index], self.volume[index], self.snr[index]
        return SoundDraws(shift, volume, snr, self.masks[:, index], self.noise_start[index], self.noise)

    def on(self, device: torch.device) -> "SoundDraws":
        """The same on a device."""
        drawn = (self.shift, self.volume, self.snr, self.masks, self.noise_start, self.noise)
        return SoundDraws(*(each.to(device) for each in drawn))

    def applied(self, inputs: dict[str, Tensor], kinds: Collection[str]) -> dict[str, Tensor]:
        """Every input, a waveform (B, samples), changed alike; in float32 and the same unit as before."""
        return {name: self._changed(clips.float(), kinds) for name, clips in inputs.items()}

    def _changed(self, clips: Tensor, kinds: Collection[str]) -> Tensor:
        if "time_shift" in kinds:
            clips = self._shifted(clips)
        if "volume" in kinds:
            clips = clips * 10 ** ((2 * _column(self.volume, clips) - 1) * DECIBELS / 20)
        if "noise" in kinds:
            clips = self._noisy(clips)
        starts, widths = self.masks[::2], self.masks[1::2]
        if "time_mask" in kinds:
            clips = clips.masked_fill(_span(starts[0], widths[0] * TIME_MASK, clips), 0)
        if "frequency_mask" in kinds:
            clips = _without_band(clips, starts[1], widths[1] * FREQUENCY_MASK)
        return clips

    def _shifted(self, clips: Tensor) -> Tensor:
        length = clips.shape[1]
        moved = ((2 * _column(self.shift, clips) - 1) * SHIFT * length).round().long()
        source = torch.arange(length, device=clips.device) - moved
        outside = (source < 0) | (source >= length)
        return clips.gather(1, source.clamp(0, length - 1)).masked_fill(outside, 0)

    def _noisy(self, clips: Tensor) -> Tensor:
        begin = (_column(self.noise_start, clips) * NOISE_SAMPLES).long()
        noise = self.noise.to(clips.device)[(begin + torch.arange(clips.shape[1], device=clips.device)) % NOISE_SAMPLES]
        decibels = LEAST_SNR + _column(self.snr, clips) * (MOST_SNR - LEAST_SNR)
        return clips + noise * clips.square().mean(1, keepdim=True).sqrt() * 10 ** (-decibels / 20)


def _without_band(clips: Tensor, start: Tensor, share: Tensor) -> Tensor:
    fourier: Any = torch.fft  # untyped in torch
    spectrum: Tensor = fourier.rfft(clips)
    masked: Tensor = spectrum.masked_fill(_span(start, share, spectrum), 0)
    return fourier.irfft(masked, n=clips.shape[1])


def _column(draws: Tensor, clips: Tensor) -> Tensor:
    """One number a clip, on its device, (B, 1)."""
    return draws.to(clips.device)[:, None]


def _span(start: Tensor, share: Tensor, values: Tensor) -> Tensor:
    """Which positions of each row of `values` (B, n) lie in a span that covers this share; bool (B, n)."""
    count = values.shape[1]
    width = _column(share, values) * count
    begin = _column(start, values) * (count - width)
    at = torch.arange(count, device=values.device)
    return (at >= begin) & (at < begin + width)
