"""Reading sound files as they are: 16-bit samples of one channel, at the rate that they were recorded at."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, MissingDependency

Clip = NDArray[np.int16]

ENDINGS = (".wav", ".flac", ".ogg")
FULL_SCALE = 32768.0
"""What stands for 1.0 in 16-bit sound."""


def recording(file: Path, rate: int) -> Clip:
    """The samples (n,) of a file; several channels are averaged, other sizes of samples rounded to 16 bits.

    Python's own `wave` reads `.wav` files of whole numbers; all else, such as FLAC or floats, needs the package
    soundfile. DataError says what is wrong with the file; another rate than `rate` is refused.
    """
    try:
        samples, found = _by_wave(file) if file.suffix.lower() == ".wav" else _by_soundfile(file, "is no .wav file")
    except (wave.Error, EOFError, OSError) as error:
        if not str(error).startswith("unknown format"):
            raise DataError(f"{file} is not a readable .wav file ({str(error) or 'it ends early'})") from error
        samples, found = _by_soundfile(file, f"is of a kind that Python itself does not read ({error})")
    if found != rate:
        raise DataError(f"{file} has {found:,} samples a second, not {rate:,}")
    if not len(samples):
        raise DataError(f"{file} holds no sound")
    return samples


def _by_wave(file: Path) -> tuple[Clip, int]:
    with wave.open(str(file), "rb") as stream:
        size, channels, promised = stream.getsampwidth(), stream.getnchannels(), stream.getnframes()
        data = stream.readframes(promised)
        rate = stream.getframerate()
    if len(data) != promised * channels * size:
        raise wave.Error(f"it ends after {len(data) // (channels * size):,} of {promised:,} samples")
    return _mixed(_sixteen_bits(np.frombuffer(data, np.uint8), size).reshape(-1, channels)), rate


def _sixteen_bits(data: NDArray[np.uint8], size: int) -> NDArray[Any]:
    """Little-endian samples of `size` bytes, in the unit of 16 bits; those of one byte are unsigned."""
    if size == 1:
        return (data.astype(np.int32) - 128) * 256
    if size == 2:
        return data.view("<i2")
    if size == 4:
        return data.view("<i4") / 2**16
    padded = np.zeros((len(data) // 3, 4), np.uint8)
    padded[:, 1:] = data.reshape(-1, 3)
    return padded.reshape(-1).view("<i4") / 2**16


def _mixed(samples: NDArray[Any]) -> Clip:
    """Of samples (n, channels)."""
    if samples.dtype == np.int16 and samples.shape[1] == 1:
        return samples[:, 0].astype(np.int16)
    return np.rint(samples.mean(1)).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _by_soundfile(file: Path, because: str) -> tuple[Clip, int]:
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency(
            f"{file} {because}, and is read by the package soundfile: pip install 'potstill[sound]'. Or convert the "
            "files to 16-bit .wav"
        ) from error
    reader: Any = soundfile
    try:
        samples, rate = reader.read(str(file), dtype="float32", always_2d=True)
    except (reader.SoundFileError, OSError) as error:
        raise DataError(f"{file} is not a readable sound file ({str(error).splitlines()[0]})") from error
    return _mixed(samples * FULL_SCALE), int(rate)


def fitted(clip: Clip, length: int) -> Clip:
    """The clip with zeros on both sides, or its middle, so that it has `length` samples.

    Of an odd number, one more is added or taken at the end.
    """
    missing = length - len(clip)
    if missing >= 0:
        before = missing // 2
        return np.pad(clip, (before, missing - before))
    begin = (len(clip) - length) // 2
    return clip[begin : begin + length]
