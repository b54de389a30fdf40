"""Facts about the timing cache: it is used where it was measured, and only whole."""

from pathlib import Path

import pytest

from potstill.export.tensorrt.manifest import Device
from potstill.export.tensorrt.timing_cache import TimingCache

HERE = Device(gpu="NVIDIA A10", compute_capability=(8, 6), tensorrt="10.16.1", cuda="12.9", driver="580.1")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A cache that was saved here, in a folder that had to be made."""
    file = tmp_path / "caches" / "model.timing"
    TimingCache.save(file, b"measured", HERE)
    return file


def test_it_comes_back_with_nothing_beside_it_but_its_record(file: Path) -> None:
    assert TimingCache.load(file, HERE) == TimingCache(b"measured")
    assert {each.name for each in file.parent.iterdir()} == {"model.timing", "model.timing.json"}


def test_where_there_is_none_nothing_is_said(tmp_path: Path) -> None:
    assert TimingCache.load(tmp_path / "model.timing", HERE) == TimingCache(b"")


@pytest.mark.parametrize("changes", [{"gpu": "NVIDIA H100"}, {"tensorrt": "11.4.0"}, {"compute_capability": (9, 0)}])
def test_that_of_another_machine_is_not_used_and_said_not_to_be(file: Path, changes: dict[str, object]) -> None:
    found = TimingCache.load(file, HERE.model_copy(update=changes))
    assert found.content == b""
    assert found.refused is not None
    assert "NVIDIA A10 with TensorRT 10.16.1" in found.refused


@pytest.mark.parametrize("damaged", ["model.timing", "model.timing.json"])
def test_a_damaged_one_is_not_used(file: Path, damaged: str) -> None:
    (file.parent / damaged).write_bytes(b"{")
    found = TimingCache.load(file, HERE)
    assert found.content == b""
    assert found.refused is not None
    assert "damaged" in found.refused


def test_one_without_a_record_is_not_used(file: Path) -> None:
    file.with_name("model.timing.json").unlink()
    assert "nothing says" in str(TimingCache.load(file, HERE).refused)
