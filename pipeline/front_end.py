"""What stands before a network for sounds: a log-mel map of the waveform, made inside the exported graph.

A convolution with windowed cosines and sines stands in for the Fourier transform, which few runtimes have as an
operator. Its weights are fixed buffers: nothing trains, prunes, factorizes or quantizes them, and they stay float32.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, fx, nn
from torch.nn import functional

from .errors import DataError

FRONT_END, NETWORK = "front_end", "network"
"""The paths of both parts in a model that has a front end."""

FLOOR = 1e-6
"""Added to every energy, so that silence has a logarithm. A full-scale tone has about 4,000 at a window of 256 samples,
the rounding of 16-bit sound about 1e-8."""

MelScale = Literal["slaney", "htk"]


class LogMel(BaseModel):
    """Log-mel energies of overlapping windows, as a map (1, mels, frames)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: Annotated[float, Field(gt=0, le=1)] = 0.032
    """Seconds of each Fourier transform, under a periodic Hann window; no frame reaches beyond the clip."""
    hop: Annotated[float, Field(gt=0, le=1)] = 0.016
    """Seconds from one frame to the next."""
    mels: Annotated[int, Field(ge=1, le=256)] = 40
    """Triangular bands, evenly spaced on the mel scale, each of height 1."""
    low: Annotated[float, Field(ge=0)] = 20.0
    """Where the first band begins, in Hz."""
    high: Annotated[float, Field(gt=0)] | None = None
    """Where the last band ends, in Hz; half of the rate unless given."""
    scale: MelScale = "slaney"
    """`slaney`: linear below 1 kHz, logarithmic above (M. Slaney, Auditory Toolbox, 1998). `htk`: 2595·log10(1 + f/700)
    (S. Young et al., The HTK Book, §5.4)."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.high is not None and self.low >= self.high:
            raise ValueError(f"`low` is {self.low:g} Hz and `high` {self.high:g} Hz; bands go from low to high")
        return self


class FrontEnd(BaseModel):
    """The front end of the models that are trained on one data set: teacher and student have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: LogMel
    rate: int
    """Samples a second."""
    mean: float = 0.0
    """Over all energies of the training split, after the logarithm; it is taken from them."""
    deviation: float = 1.0
    """Likewise; they are divided by it."""

    @property
    def window(self) -> int:
        """In samples."""
        return round(self.settings.window * self.rate)

    @property
    def hop(self) -> int:
        """In samples."""
        return round(self.settings.hop * self.rate)

    def shape(self, samples: int) -> tuple[int, int, int]:
        """Of the map of a clip of so many samples: one channel, mels, frames."""
        return 1, self.settings.mels, (samples - self.window) // self.hop + 1

    def check(self, samples: int) -> None:
        """Raise DataError where the settings do not fit the rate, or clips of so many samples."""
        high = self._high
        if high > self.rate / 2 or self.settings.low >= high:
            raise DataError(
                f"front_end: bands go from {self.settings.low:g} to {high:g} Hz, but {self.rate:,} samples a second "
                f"hold frequencies up to {self.rate / 2:g} Hz; set `low` and `high` below that"
            )
        if self.window < 2 or self.hop < 1 or self.window > samples:
            raise DataError(
                f"front_end: a window of {self.window:,} samples every {self.hop:,} does not fit a clip of {samples:,}"
                "; `window` and `hop` are in seconds, and `seconds` is the length of a clip"
            )
        empty = int((mel_filters(self.rate, self.window, self.settings).sum(1) == 0).sum())
        if empty:
            raise DataError(
                f"front_end: {empty} of the {self.settings.mels} mel bands are so narrow that no frequency of a window "
                f"of {self.window:,} samples lies in them; take fewer `mels` or a longer `window`"
            )

    def module(self) -> "LogMelModule":
        """From waveforms (B, samples) to maps (B, mels, frames)."""
        return LogMelModule(self)

    def in_words(self) -> str:
        """One line for people."""
        asked = self.settings
        return (
            f"log-mel map of {asked.mels} bands ({asked.scale} scale, {asked.low:g} to {self._high:g} Hz), windows of "
            f"{self.window:,} samples every {self.hop:,}"
        )

    @property
    def _high(self) -> float:
        return self.rate / 2 if self.settings.high is None else self.settings.high


class LogMelModule(nn.Module):
    """The front end itself; it holds no parameters, and no state that is saved: its settings say all."""

    waves: Tensor
    filters: Tensor
    floor: Tensor

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        self.hop = front_end.hop
        self.scale = 1 / front_end.deviation
        filters = mel_filters(front_end.rate, front_end.window, front_end.settings)
        # Frequencies that no band holds, such as 0 Hz, are not computed.
        used = filters.sum(0) > 0
        waves = windowed_waves(front_end.window)[:, used]
        # log(c·e) = log e + log c: the mean is taken off by the filters, which saves an operator.
        gain = math.exp(-front_end.mean)
        twice = torch.cat([filters[:, used], filters[:, used]], 1)
        self.register_buffer("waves", waves.flatten(0, 1).unsqueeze(1).float(), persistent=False)
        self.register_buffer("filters", (gain * twice).unsqueeze(2).float(), persistent=False)
        self.register_buffer("floor", torch.full((len(filters),), gain * FLOOR), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Waveforms (B, samples) from -1 to 1 to maps (B, mels, frames), in float32 whatever the mixed precision is."""
        if audio.dtype != torch.float32:
            audio = audio.float()
        if torch.is_autocast_enabled(audio.device.type):
            with torch.autocast(audio.device.type, enabled=False):
                return self._energies(audio)
        return self._energies(audio)

    def _energies(self, audio: Tensor) -> Tensor:
        parts = functional.conv1d(audio.unsqueeze(1), self.waves, stride=self.hop)
        energies = functional.conv1d(parts * parts, self.filters, self.floor)
        return energies.log() * self.scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves to other devices, and stays in float32 where a model is cast to 16 bits."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.to(fn(buffer).device))
        return self


class WithFrontEnd(nn.Module):
    """A network for images (B, 1, mels, frames) behind a front end: takes waveforms (B, samples)."""

    def __init__(self, front_end: LogMelModule, network: nn.Module) -> None:
        super().__init__()
        self.front_end = front_end
        self.network = network

    def forward(self, audio: Tensor) -> Tensor:
        """What the network makes of the maps."""
        maps = self.front_end(audio).unsqueeze(1)
        return self.network(maps if maps.dtype == audio.dtype else maps.to(audio.dtype))


def windowed_waves(window: int) -> Tensor:
    """Cosines and sines of every whole number of periods, under a periodic Hann window: float64 (2, bins, window)."""
    time = torch.arange(window, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * time / window)
    # Whole periods are counted in whole numbers, so that the phase of high frequencies is exact.
    turns = torch.outer(torch.arange(window // 2 + 1), torch.arange(window)) % window
    phase = 2 * math.pi * turns.double() / window
    return torch.stack([torch.cos(phase), torch.sin(phase)]) * hann


def mel_filters(rate: int, window: int, settings: LogMel) -> Tensor:
    """The weight of each frequency of a transform of `window` samples in each band: float64 (mels, bins)."""
    high = rate / 2 if settings.high is None else settings.high
    first, last = _mel(settings.low, settings.scale), _mel(high, settings.scale)
    step = (last - first) / (settings.mels + 1)
    hertz = [_hertz(first + number * step, settings.scale) for number in range(settings.mels + 2)]
    edges = torch.tensor(hertz, dtype=torch.float64)
    frequencies = torch.arange(window // 2 + 1, dtype=torch.float64) * rate / window
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - below) / (centre - below), (above - frequencies) / (above - centre)
    return torch.minimum(rising, falling).clamp(min=0)


_HERTZ_A_MEL = 200 / 3
_BEND = 1000.0
_MELS_AT_BEND = _BEND / _HERTZ_A_MEL
_LOG_STEP = math.log(6.4) / 27
"""Slaney's scale: 15 mels up to 1 kHz, then 27 for each factor of 6.4."""


def _mel(hertz: float, scale: MelScale) -> float:
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    if hertz < _BEND:
        return hertz / _HERTZ_A_MEL
    return _MELS_AT_BEND + math.log(hertz / _BEND) / _LOG_STEP


def _hertz(mel: float, scale: MelScale) -> float:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    if mel < _MELS_AT_BEND:
        return mel * _HERTZ_A_MEL
    return _BEND * math.exp(_LOG_STEP * (mel - _MELS_AT_BEND))


def keep_front_end(graph: fx.GraphModule, model: nn.Module) -> None:
    """Put the module itself in the place of its operators, in a graph captured of `model`.

    What reads the graph, to quantize or to cut, so finds nothing there; and it goes on computing in float32 when the
    graph is trained in mixed precision. Exporters look inside of it again.
    """
    if not isinstance(model, WithFrontEnd):
        return
    nodes = graph.graph
    inside = [node for node in nodes.nodes if node.op == "call_function" and _is_inside(node)]
    (audio,) = (node for node in nodes.nodes if node.op == "placeholder")
    last = inside[-1]
    with nodes.inserting_before(last):
        whole = nodes.call_module(FRONT_END, (audio,))
    whole.meta = dict(last.meta)
    last.replace_all_uses_with(whole)
    for node in reversed(inside):
        nodes.erase_node(node)
    for node in list(nodes.nodes):
        if node.op == "get_attr" and not node.users and str(node.target).startswith(f"{FRONT_END}."):
            nodes.erase_node(node)
    setattr(graph, FRONT_END, deepcopy(model.front_end).eval())
    graph.recompile()


def _is_inside(node: fx.Node) -> bool:
    stack = cast(dict[str, tuple[str, Any]], node.meta.get("nn_module_stack") or {})
    return any(path == FRONT_END for path, _ in stack.values())
