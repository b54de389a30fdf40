"""Tests of the CIFAR sources."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from potstill.pipeline.errors import DataError
from potstill.pipeline.sources.cifar import Cifar

NAMES_10 = [f"class{number}" for number in range(10)]
NAMES_100 = [f"fine{number}" for number in range(100)]


def rows(labels: list[list[int]], seed: int) -> bytes:
    """Images in the binary version: the bytes of each one's labels, then its planes."""
    draws = np.random.default_rng(seed)
    return b"".join(bytes(each) + draws.integers(0, 256, 3072, dtype=np.uint8).tobytes() for each in labels)


def cifar10() -> dict[str, bytes]:
    """A small CIFAR-10."""
    files = {f"data_batch_{part}.bin": rows([[label] for label in range(10)], part) for part in range(1, 6)}
    return files | {
        "test_batch.bin": rows([[9], [3]], 6),
        "batches.meta.txt": ("\n".join(NAMES_10) + "\n\n").encode(),
    }


def cifar100() -> dict[str, bytes]:
    """A small CIFAR-100, whose coarse classes are never the fine ones."""
    return {
        "train.bin": rows([[99 - label, label] for label in range(100)], 1),
        "test.bin": rows([[0, 42], [1, 7]], 2),
        "fine_label_names.txt": "\n".join(NAMES_100).encode(),
    }


def unpacked(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files in a folder."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def archive(file: Path, files: Mapping[str, bytes]) -> Path:
    """The files in an archive, in a folder as the published ones are."""
    with tarfile.open(file, "w:gz") as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-batches-bin/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return file


def read(path: Path) -> Cifar:
    return Cifar(path=path, normalize="cifar10")


class TestCifar:
    def test_reads_the_archive_as_the_folder_unpacked_from_it(self, tmp_path: Path) -> None:
        folder = read(unpacked(tmp_path / "unpacked", cifar10())).load(tmp_path)
        packed = read(archive(tmp_path / "cifar-10-binary.tar.gz", cifar10())).load(tmp_path)
        assert packed.fingerprint == folder.fingerprint
        assert (len(packed.train), len(packed.test), packed.classes) == (50, 2, tuple(NAMES_10))

    def test_images_are_planes_after_their_label(self, tmp_path: Path) -> None:
        files = cifar10()
        test = read(unpacked(tmp_path / "unpacked", files)).load(tmp_path).test
        assert test.target.tolist() == [9, 3]
        planes = np.frombuffer(files["test_batch.bin"][1:3073], np.uint8).reshape(3, 32, 32)
        np.testing.assert_array_equal(test.raw["image"][0].numpy(), planes)

    def test_the_class_of_cifar100_is_the_fine_one(self, tmp_path: Path) -> None:
        data = read(archive(tmp_path / "cifar-100-binary.tar.gz", cifar100())).load(tmp_path)
        assert data.test.target.tolist() == [42, 7]
        assert data.classes == tuple(NAMES_100)

    def test_a_missing_place_says_what_to_download(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no such file or folder; download cifar-10-binary\.tar\.gz"):
            read(tmp_path / "none").load(tmp_path)

    def test_another_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no CIFAR in its binary version"):
            read(unpacked(tmp_path / "other", {"notes.txt": b"x"})).load(tmp_path)

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        files = cifar10()
        del files["data_batch_3.bin"]
        with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
            read(unpacked(tmp_path / "unpacked", files)).load(tmp_path)

    def test_a_part_that_is_cut_off_is_named(self, tmp_path: Path) -> None:
        files = cifar10()
        files["data_batch_2.bin"] = files["data_batch_2.bin"][:-1]
        with pytest.raises(DataError, match=r"data_batch_2\.bin has 30729 bytes"):
            read(archive(tmp_path / "cut.tar.gz", files)).load(tmp_path)

    def test_an_archive_that_is_cut_off_is_refused(self, tmp_path: Path) -> None:
        file = archive(tmp_path / "cifar-10-binary.tar.gz", cifar10())
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(DataError, match="is no readable archive"):
            read(file).load(tmp_path)
