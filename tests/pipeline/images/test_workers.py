"""Facts about the processes that decode."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")

from potstill.pipeline.images.decoding import decoded
from potstill.pipeline.images.pictures import FilePictures, Preparation
from potstill.pipeline.images.workers import Workers
from potstill.pipeline.progress import Silent
from tests.support.pictures import picture_folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> FilePictures:
    root = picture_folder(tmp_path_factory.mktemp("pictures"), "train", each=12)
    return FilePictures(sorted(root.rglob("*.*g")), root)


def test_every_row_is_its_image_with_any_number_of_workers(pictures: FilePictures, tmp_path: Path) -> None:
    for count in (1, 3):
        rows = np.zeros((len(pictures), 3, 16, 16), np.uint8)
        with Workers(count, Silent()) as workers:
            assert workers.decode(pictures, Preparation(20, 16), rows) == []
        for number, row in enumerate(rows):
            assert np.array_equal(row, decoded(pictures.file(number, tmp_path), 20, 16))


def test_a_process_that_dies_costs_one_image_which_is_named(pictures: FilePictures) -> None:
    rows = np.zeros((len(pictures), 3, 8, 8), np.uint8)
    with Workers(1, Silent()) as workers:
        workers.decode(pictures.at(np.arange(2)), Preparation(8, 8), rows)
        workers._started[0]._process.kill()
        (problem,) = workers.decode(pictures, Preparation(8, 8), rows)
    assert problem.name == pictures.name(0)
    assert problem.reason == "took its decoding process down (exit code -9)"
    assert rows[-1].any()


def test_all_that_cannot_be_decoded_are_told_in_order(pictures: FilePictures, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.png").write_text("no image")
    (tmp_path / "3.png").write_bytes(pictures.encoded(0))
    files = [tmp_path / name for name in ("3.png", "2.png", "1.png", "0.png")]
    with Workers(1, Silent()) as workers:
        found = workers.decode(FilePictures(files, tmp_path), Preparation(8, 8), np.zeros((4, 3, 8, 8), np.uint8))
    assert [(problem.name, problem.reason) for problem in found] == [
        ("2.png", "is no image that Pillow can read"),
        ("1.png", "is empty"),
        ("0.png", "cannot be read (No such file or directory)"),
    ]
