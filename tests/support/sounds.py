"""Clips of sound to learn from: tones whose class is their pitch, in noise, of unequal length."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 4000
TONES = (300, 700, 1500)
"""Hertz, one a class."""


def tone(hertz: float, length: int, seed: int = 0) -> NDArray[np.int16]:
    """A tone of random phase in noise, (length,)."""
    draws = np.random.default_rng(seed)
    clean = 0.3 * np.sin(2 * np.pi * (hertz * np.arange(length) / RATE + draws.random()))
    return np.rint(32768 * (clean + draws.normal(0, 0.02, length))).astype(np.int16)


def write_npz(file: Path, count: int, seed: int, **changes: Any) -> None:
    """`count` clips of 0.2 to 0.4 s end to end, as the data source `sound` reads them, with three speakers."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % len(TONES)
    lengths = draws.integers(RATE // 5, 2 * RATE // 5, count)
    clips = [
        tone(TONES[label], length, seed + at) for at, (label, length) in enumerate(zip(labels, lengths, strict=True))
    ]
    arrays = {"audio": np.concatenate(clips), "length": lengths, "y": labels, "speaker": np.arange(count) // 3 % 3}
    kept: dict[str, Any] = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(file, **kept)


def write_wav(file: Path, samples: NDArray[Any], *, rate: int = RATE, size: int = 2) -> Path:
    """A .wav file of whole numbers (n,) or (n, channels), of which the lowest `size` bytes are written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = samples.astype("<i4")
    whole = whole[:, None] if whole.ndim == 1 else whole
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(whole.shape[1])
        stream.setsampwidth(size)
        stream.setframerate(rate)
        stream.writeframes(np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 4)[:, :size].tobytes())
    return file
