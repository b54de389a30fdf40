"""Facts about sound files and about bringing clips to one length."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from potstill.pipeline.errors import DataError, MissingDependency
from potstill.pipeline.recordings import fitted, recording
from tests.support.sounds import RATE, write_wav

SAMPLES = np.array([0, 1000, -1000, 32767, -32768])


def test_16_bits_come_as_they_are(tmp_path: Path) -> None:
    assert recording(write_wav(tmp_path / "a.wav", SAMPLES), RATE).tolist() == SAMPLES.tolist()


def test_other_sizes_are_brought_to_16_bits(tmp_path: Path) -> None:
    eight = write_wav(tmp_path / "8.wav", np.array([128, 255, 0]), size=1)
    assert recording(eight, RATE).tolist() == [0, 127 * 256, -32768]
    for size in (3, 4):
        scaled = SAMPLES * 2 ** (8 * (size - 2))
        assert recording(write_wav(tmp_path / f"{size}.wav", scaled, size=size), RATE).tolist() == SAMPLES.tolist()


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = write_wav(tmp_path / "a.wav", np.array([[100, 300], [-5, -6]]))
    assert recording(both, RATE).tolist() == [200, -6]


def test_another_rate_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav has 4,000 samples a second, not 8,000"):
        recording(write_wav(tmp_path / "a.wav", SAMPLES), 8000)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "a.wav", SAMPLES).read_bytes()
    (tmp_path / "short.wav").write_bytes(whole[:-4])
    (tmp_path / "text.wav").write_text("no sound at all, and long enough")
    (tmp_path / "nothing.wav").write_bytes(b"")
    for name, words in {
        "short": r"short\.wav is not a readable \.wav file \(it ends after 3 of 5",
        "text": r"text\.wav is not a readable \.wav file \(file does not start with RIFF",
        "nothing": r"nothing\.wav is not a readable \.wav file \(it ends early\)",
    }.items():
        with pytest.raises(DataError, match=words):
            recording(tmp_path / f"{name}.wav", RATE)
    with pytest.raises(DataError, match="holds no sound"):
        recording(write_wav(tmp_path / "empty.wav", np.zeros((0, 1))), RATE)


@pytest.mark.skipif(importlib.util.find_spec("soundfile") is not None, reason="the package soundfile is installed")
def test_other_kinds_say_what_reads_them(tmp_path: Path) -> None:
    floats = bytearray(write_wav(tmp_path / "a.wav", SAMPLES).read_bytes())
    floats[20:22] = (3).to_bytes(2, "little")
    (tmp_path / "float.wav").write_bytes(floats)
    (tmp_path / "a.flac").write_bytes(b"fLaC")
    for name in ("float.wav", "a.flac"):
        with pytest.raises(MissingDependency, match=rf"{name} is .* pip install 'potstill\[sound\]'"):
            recording(tmp_path / name, RATE)


def test_all_kinds_of_files_hold_the_same_sound(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the package soundfile is not installed")
    for name, kind in {"a.flac": "PCM_16", "b.wav": "FLOAT", "c.wav": "PCM_24"}.items():
        soundfile.write(tmp_path / name, SAMPLES / 32768, RATE, subtype=kind)
        assert recording(tmp_path / name, RATE).tolist() == SAMPLES.tolist()
    (tmp_path / "bad.flac").write_bytes(b"fLaC")
    with pytest.raises(DataError, match=r"bad\.flac is not a readable sound file"):
        recording(tmp_path / "bad.flac", RATE)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(5, [1, 2, 3, 4, 5]), (8, [0, 1, 2, 3, 4, 5, 0, 0]), (3, [2, 3, 4]), (2, [2, 3]), (1, [3])],
)
def test_a_clip_is_padded_or_cropped_around_its_middle(length: int, expected: list[int]) -> None:
    assert fitted(np.arange(1, 6, dtype=np.int16), length).tolist() == expected
