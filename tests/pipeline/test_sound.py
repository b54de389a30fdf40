"""Facts about the data source of sound clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import DataError
from potstill.pipeline.sources.sound import Sound
from tests.support.sounds import RATE, TONES, tone, write_npz, write_wav


def load(folder: Path, **settings: Any) -> Dataset:
    return Sound(**({"path": Path(), "rate": RATE, "seconds": 0.3, "batch_size": 8} | settings)).load(folder)


def refused(folder: Path, words: str, **settings: Any) -> None:
    with pytest.raises(DataError, match=words):
        load(folder, **settings)


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """36 and 18 clips, of three speakers each."""
    write_npz(tmp_path / "train.npz", 36, seed=0)
    write_npz(tmp_path / "test.npz", 18, seed=100)
    return tmp_path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Eight clips of each of three classes, by four people: `low/ann_0.wav` and so on."""
    for name, hertz in zip(("low", "middle", "top"), TONES, strict=True):
        for number in range(8):
            person = ("ann", "bob", "cyn", "dan")[number % 4]
            write_wav(tmp_path / name / f"{person}_{number}.wav", tone(hertz, 800 + 100 * number, number))
    return tmp_path


class TestArraysOfClips:
    def test_clips_lie_in_the_middle_of_their_time_at_full_scale_one(self, npz: Path) -> None:
        data = load(npz)
        audio = data.train.raw["audio"]
        assert audio.dtype == torch.int16
        assert audio.shape == (36, 1200)
        with np.load(npz / "train.npz") as archive:
            clip = archive["audio"][: archive["length"][0]].astype(np.float32) / 32768
        found = data.train.batch(torch.tensor([0])).inputs["audio"][0].numpy()
        missing = 1200 - len(clip)
        expected = np.pad(clip, (max(missing, 0) // 2, max(missing - missing // 2, 0)))
        begin = max(-missing, 0) // 2
        assert np.array_equal(found, expected[begin : begin + 1200])

    def test_what_was_cropped_is_said(self, npz: Path) -> None:
        assert "clips cropped" not in load(npz, seconds=0.5).description
        assert "0.2 s at 4,000 Hz (" in load(npz, seconds=0.2).description

    def test_fractions_are_the_same_sound(self, npz: Path, tmp_path: Path) -> None:
        whole = load(npz).train.raw["audio"]
        with np.load(npz / "train.npz") as archive:
            write_npz(tmp_path / "train.npz", 36, 0, audio=(archive["audio"] / 32768).astype(np.float32))
        assert torch.equal(load(tmp_path).train.raw["audio"], whole)

    def test_held_out_clips_have_each_class_in_its_share(self, npz: Path) -> None:
        data = load(npz, validation=9)
        assert data.validation is not None
        assert torch.bincount(data.validation.target).tolist() == [3, 3, 3]

    def test_whole_speakers_can_be_held_out(self, npz: Path) -> None:
        data = load(npz, validation=9, split_by="speaker")
        assert data.validation is not None
        with np.load(npz / "train.npz") as archive:
            speaker = archive["speaker"]
        everyone = load(npz).train.raw["audio"]
        held = [
            int(speaker[row])
            for row in range(36)
            if any(torch.equal(everyone[row], clip) for clip in data.validation.raw["audio"])
        ]
        assert len(held) == len(data.validation) == 12
        assert len(set(held)) == 1

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"length": np.full(36, 900)}, r"the lengths add up to 32,400, but `audio` has [\d,]+ samples"),
            ({"length": np.arange(36)}, "how many samples each clip has, one or more"),
            ({"length": None}, "has no array 'length', only audio, y, speaker"),
            ({"audio": np.zeros((36, 10), np.int16)}, r"`audio` is int16 of shape \(36, 10\)"),
            ({"audio": np.full(9000, 1.5)}, "`audio` holds fractions that are not from -1 to 1"),
        ],
    )
    def test_arrays_that_are_no_clips_are_refused(self, npz: Path, changes: dict[str, Any], words: str) -> None:
        if "audio" in changes and changes["audio"].ndim == 1:
            changes = changes | {"length": np.full(36, 250)}
        write_npz(npz / "train.npz", 36, 0, **changes)
        refused(npz, words)

    def test_groups_that_are_not_there_or_are_one_are_refused(self, npz: Path) -> None:
        refused(npz, "has no array 'room'", split_by="room")
        write_npz(npz / "train.npz", 36, 0, speaker=np.zeros(36, int))
        refused(npz, "all samples are of one group", split_by="speaker", validation=9)
        write_npz(npz / "train.npz", 36, 0, speaker=np.zeros(35, int))
        refused(npz, r"groups of the shape \(35,\) for 36 samples", split_by="speaker", validation=9)


class TestFoldersOfFiles:
    def test_classes_are_called_like_their_folders(self, files: Path) -> None:
        data = load(files, test=6)
        assert data.classes == ("low", "middle", "top")
        assert (len(data.train), len(data.test)) == (18, 6)
        assert torch.bincount(data.test.target).tolist() == [2, 2, 2]
        again = load(files, test=6, classes=("top", "low", "middle"))
        assert again.classes == ("top", "low", "middle")

    def test_people_are_told_apart_by_the_names_of_files(self, files: Path) -> None:
        data = load(files, test=5, validation=5, split_by="^([a-z]+)_")
        assert data.validation is not None
        assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 6, 6]

    def test_a_folder_for_each_split_is_read_as_it_is(self, files: Path) -> None:
        for split, number in (("train", 0), ("test", 7)):
            for name, hertz in (("low", 300), ("top", 1500)):
                write_wav(files / "both" / split / name / "a.wav", tone(hertz, 900, number))
                write_wav(files / "both" / split / name / "b.wav", tone(hertz, 900, number + 1))
        data = load(files / "both")
        assert (len(data.train), len(data.test), data.classes) == (4, 4, ("low", "top"))
        refused(files / "both", "has a folder `test`, so `test: 2` has nothing to hold out", test=2)
        write_wav(files / "both" / "test" / "odd" / "a.wav", tone(300, 900))
        refused(files / "both", "has the folders odd, which are no classes of train")

    def test_all_files_that_cannot_be_used_are_named_at_once(self, files: Path) -> None:
        (files / "low" / "ann_0.wav").write_bytes(b"RIFF and no more")
        write_wav(files / "top" / "bob_1.wav", tone(300, 500), rate=8000)
        refused(
            files, r"(?s)2 of 24 files cannot be used:.*ann_0\.wav is not.*bob_1\.wav has 8,000 samples.*Mend", test=6
        )

    def test_what_is_not_said_or_does_not_fit_is_refused(self, files: Path, tmp_path: Path) -> None:
        refused(files, r"`test` must say how many of its 24 clips.*`test: 4`")
        refused(files, "finds nothing in the name of", test=6, split_by="(x)")
        refused(files, "has no group in parentheses", test=6, split_by="ann")
        refused(files, "finds one group in all of 24 clips", test=6, split_by="(_)")
        refused(files, "and `classes` names others", test=6, classes=("low", "high"))
        (files / "empty").mkdir()
        refused(files, r"empty holds no sound files \(\.wav, \.flac, \.ogg\)", test=6)
        refused(tmp_path / "low", "has 0 folders; there must be one", test=6)
        refused(tmp_path, "no such folder; `data.path` must name", path=Path("nowhere"))


class TestTheFrontEnd:
    def test_brings_its_maps_to_zero_mean_and_unit_deviation(self, npz: Path) -> None:
        data = load(npz)
        assert data.front_end is not None
        assert data.rates == {"audio": RATE}
        maps = data.front_end.module()(data.train.batch(torch.arange(36)).inputs["audio"])
        assert abs(float(maps.mean())) < 0.02
        assert abs(float(maps.std()) - 1) < 0.02

    def test_can_be_left_out(self, npz: Path) -> None:
        data = load(npz, front_end="none")
        assert data.front_end is None
        assert data.fingerprint != load(npz).fingerprint

    def test_decides_the_fingerprint(self, npz: Path) -> None:
        assert load(npz, front_end={"mels": 20}).fingerprint != load(npz, front_end={"mels": 21}).fingerprint

    def test_that_does_not_fit_is_refused_before_clips_are_read(self, tmp_path: Path) -> None:
        refused(tmp_path / "nowhere", "does not fit a clip of 40", seconds=0.01)


def test_training_clips_alone_are_changed_anew_in_each_view(npz: Path) -> None:
    data = load(npz, augment=("noise", "time_shift"), views=2, validation=9)
    views = [data.train.batch(torch.tensor([4, 2]), view=data.view(5, epoch)).inputs["audio"] for epoch in range(3)]
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])
    assert not data.test.augmented
    with pytest.raises(DataError, match="`views` counts augmented views"):
        load(npz, views=2)
