"""Facts about data sets that are folders of images."""

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

pytest.importorskip("PIL", reason="Pillow is not installed")

from potstill.pipeline.augmentation import View
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import DataError
from potstill.pipeline.images.decoding import decoded
from potstill.pipeline.progress import Silent
from potstill.pipeline.sources.image_folder import ImageFolder
from tests.support.pictures import CLASSES, picture_folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images a class to train on and to measure on; nothing is changed in it."""
    return picture_folder(tmp_path_factory.mktemp("sound") / "pets", "train", "test")


@pytest.fixture
def pets(sound: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(sound, tmp_path / "pets"))


def load(root: Path, **settings: Any) -> Dataset:
    settings = {"size": 16, "workers": 1, **settings}
    return ImageFolder(path=root, **settings).load(Path("/nowhere"))


def refused(root: Path, words: str, **settings: Any) -> None:
    with pytest.raises(DataError, match=words):
        load(root, **settings)


class Counting(Silent):
    """Counts what is told of one piece of work."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, int]] = []
        self.done = 0

    @contextmanager
    def track(self, description: str, total: int) -> Generator["Counting"]:
        """Once."""
        self.announced.append((description, total))
        yield self

    def advance(self, count: int = 1, **figures: float) -> None:
        """Adds up."""
        self.done += count


def image_files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.rglob("*.*g"))


class TestReading:
    def test_classes_are_the_folders_and_samples_their_images(self, sound: Path) -> None:
        data = load(sound)
        assert data.classes == CLASSES
        assert data.description == "pets 3x16x16: 24 train, 24 test, 3 classes"
        files = list(image_files(sound / "test"))
        assert torch.equal(data.test.target, torch.tensor([CLASSES.index(file.parent.name) for file in files]))
        assert np.array_equal(data.test.raw["image"].numpy(), np.stack([decoded(file, 16, 16) for file in files]))

    def test_tells_how_many_images_are_decoded_and_finds_those_of_earlier_runs(
        self, sound: Path, tmp_path: Path
    ) -> None:
        for cache in (None, tmp_path, tmp_path):
            told = Counting()
            source = ImageFolder(path=sound, size=16, workers=2, cache=cache)
            source.load(Path("/nowhere"), progress=told)
            assert told.announced == [("decodes images", 48)]
            assert told.done == 48

    def test_is_the_same_with_any_number_of_workers_and_mapped_from_a_file(self, sound: Path, tmp_path: Path) -> None:
        first = load(sound, workers=1)
        assert load(sound, workers=2).fingerprint == first.fingerprint
        mapped = load(sound, cache=tmp_path / "cache", memory_bytes=0)
        assert mapped.fingerprint == first.fingerprint
        files = sorted((tmp_path / "cache").glob("*.npy"))
        before = [file.stat().st_mtime_ns for file in files]
        again = load(sound, cache=tmp_path / "cache", memory_bytes=0)
        assert again.fingerprint == first.fingerprint
        assert [file.stat().st_mtime_ns for file in files] == before

    def test_a_stored_file_that_was_damaged_is_made_anew(self, sound: Path, tmp_path: Path) -> None:
        first = load(sound, cache=tmp_path / "cache")
        for file in (tmp_path / "cache").glob("*.npy"):
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
        assert load(sound, cache=tmp_path / "cache").fingerprint == first.fingerprint

    def test_a_changed_image_changes_the_fingerprint_and_what_is_stored(self, pets: Path, tmp_path: Path) -> None:
        first = load(pets, cache=tmp_path / "cache")
        shutil.copyfile(pets / "train" / "cat" / "0.png", pets / "train" / "cat" / "8.png")
        second = load(pets, cache=tmp_path / "cache")
        assert second.fingerprint != first.fingerprint
        assert len(second.train) == 25

    def test_files_that_are_no_images_are_left_out_and_told(self, pets: Path) -> None:
        (pets / "train" / "cat" / "notes.txt").write_text("nice cats")
        (pets / "train" / "cat" / ".hidden.png").write_text("")
        assert "1 other files left out (.txt)" in load(pets).description

    def test_folders_below_a_class_belong_to_it_even_in_a_ring_of_links(self, pets: Path) -> None:
        inner = pets / "train" / "dog" / "young"
        inner.mkdir()
        (pets / "train" / "dog" / "0.png").rename(inner / "0.PNG")
        (inner / "back").symlink_to(pets / "train" / "dog")
        assert torch.bincount(load(pets).train.target).tolist() == [8, 8, 8]


class TestDividing:
    def test_a_share_of_one_folder_is_put_aside_each_class_alike(self, sound: Path) -> None:
        data = load(sound / "train", test=0.25, validation=3)
        assert data.validation is not None
        for split, count in ((data.train, 5), (data.validation, 1), (data.test, 2)):
            assert torch.bincount(split.target).tolist() == [count] * 3

    def test_copies_of_an_image_go_into_one_split(self, pets: Path) -> None:
        for file in list(image_files(pets / "train")):
            shutil.copyfile(file, file.with_stem(f"copy-{file.stem}"))
        data = load(pets / "train", test=0.25, validation=6)
        assert data.validation is not None
        seen = [{image.tobytes() for image in split.raw["image"].numpy()} for split in (data.train, data.test)]
        assert (len(data.train), len(data.test)) == (24, 12)
        assert not seen[0] & seen[1]

    def test_a_validation_folder_is_chosen_on(self, pets: Path) -> None:
        picture_folder(pets, "val", each=2)
        data = load(pets)
        assert data.validation is not None
        assert len(data.validation) == 6
        refused(pets, "brings its own validation split; leave out `validation`", validation=4)

    def test_another_folder_can_be_measured_on(self, pets: Path) -> None:
        (pets / "test").rename(pets / "val")
        assert len(load(pets, test="val").test) == 24
        refused(pets, "has no folder test; .*`test: 0.2`.*`test: val`")


class TestRandomParts:
    SETTINGS: dict[str, Any] = {"resize": 24, "augment": ("random_resized_crop", "flip")}  # noqa: RUF012, never changed

    def test_are_of_the_size_asked_for_and_drawn_from_the_whole_image(self, sound: Path) -> None:
        data = load(sound, **self.SETTINGS)
        assert data.train.input_shapes == data.test.input_shapes == {"image": (3, 16, 16)}
        index = torch.arange(len(data.train))
        first, second = (data.train.batch(index, view=View(1, number)).inputs["image"] for number in (0, 1))
        assert first.shape == (24, 3, 16, 16)
        assert not torch.equal(first, second)
        assert torch.equal(first[5:9], data.train.batch(index[5:9], view=View(1, 0)).inputs["image"])

    def test_without_a_view_the_middle_is_seen(self, sound: Path) -> None:
        whole, cut = load(sound, **self.SETTINGS), load(sound, resize=24)
        seen = torch.cat([batch.inputs["image"] for batch in whole.train.batches(10)])
        assert torch.equal(seen, whole.train.batch(torch.arange(24)).inputs["image"])
        difference = whole.train.raw["image"].int() - cut.train.raw["image"].int()
        assert int(difference.abs().max()) <= 1
        assert torch.equal(whole.test.raw["image"], cut.test.raw["image"])

    def test_do_not_go_with_the_other_crop(self, sound: Path) -> None:
        refused(sound, "each choose a part of an image; leave one out", augment=("random_crop", "random_resized_crop"))


class TestWrongFolders:
    def test_that_are_not_there_or_have_nothing(self, pets: Path) -> None:
        refused(pets / "gone", "no such folder; `data.path`")
        refused(pets / "train", "has no folder train and no folder test; images lie in train/<class>/")
        refused(pets / "train" / "cat", "has no folders; the images of each class", test=0.2)
        refused(pets, "asks for a share of train to measure on; give `test: test`", test=0.2)
        shutil.rmtree(pets / "test" / "owl")
        assert "no test images of owl" in load(pets).description

    def test_of_a_class_without_images(self, pets: Path) -> None:
        for name in ("bat", "elk"):
            (pets / "train" / name).mkdir()
        refused(pets, r"train: no images \(\.jpg, .*\) in bat, elk; remove empty folders")

    def test_of_a_class_that_only_the_test_has(self, pets: Path) -> None:
        (pets / "test" / "dog").rename(pets / "test" / "Dog")
        refused(pets, r"test: Dog is not among the training classes \(cat, dog, owl\); name the folders alike")

    def test_every_damaged_image_is_named_with_their_number(self, pets: Path) -> None:
        half = (pets / "train" / "dog" / "1.jpg").read_bytes()
        (pets / "train" / "dog" / "1.jpg").write_bytes(half[: len(half) // 2])
        (pets / "test" / "owl" / "2.png").write_text("no image")
        (pets / "test" / "cat" / "0.png").write_bytes(b"")
        words = (
            r"3 of 48 images cannot be decoded:\n  train/dog/1.jpg: .*[Tt]runcated.*\n"
            r"  test/cat/0.png: is empty\n  test/owl/2.png: is no image that Pillow can read\nreplace or remove them"
        )
        refused(pets, words)

    def test_an_image_that_misleads_is_refused_or_told(self, pets: Path) -> None:
        shutil.copyfile(pets / "train" / "cat" / "0.png", pets / "test" / "cat" / "leak.png")
        shutil.copyfile(pets / "train" / "cat" / "2.png", pets / "train" / "owl" / "torn.png")
        words = (
            "2 images occur in two splits, or under two labels:\n  train/cat/0.png = test/cat/leak.png\n"
            "  train/cat/2.png = train/owl/torn.png\nremove one of each, or say `duplicates: keep`"
        )
        refused(pets, words)
        assert "2 images occur in two splits or under two labels" in load(pets, duplicates="keep").description

    def test_more_than_may_be_held_in_memory_asks_for_a_folder(self, sound: Path) -> None:
        words = r"the 48 images take 0.0369 MB decoded, and `memory_bytes` allows 0.02 MB; raise it.*`cache: FOLDER`"
        refused(sound, words, memory_bytes=20_000)

    def test_a_middle_larger_than_the_image_is_refused(self, sound: Path) -> None:
        with pytest.raises(ValidationError, match="`resize: 8` is smaller than `size: 16`"):
            load(sound, resize=8)
