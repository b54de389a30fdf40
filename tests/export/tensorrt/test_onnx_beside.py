"""Facts about ONNX files that others made: they are copied whole, and what is missing is named."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from potstill.export.tensorrt.onnx_beside import copied, external_files, read_onnx
from potstill.pipeline.errors import ExportError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A graph whose weight lies in another file, in a folder of its own."""
    graph = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> kept (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }'
    )
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "w"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    file = folder / "net.onnx"
    onnx.save(graph, file, save_as_external_data=True, location="net.bin", size_threshold=0)
    return file


def test_the_weights_come_along(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "ours"
    place.mkdir()
    made, *_ = copied(model, place)
    assert {each.name for each in place.iterdir()} == {"model.onnx", "net.bin"}
    assert np.array_equal(onnx.numpy_helper.to_array(onnx.load(made).graph.initializer[0]), np.eye(64))


def test_one_that_is_there_already_is_not_copied(model: Path) -> None:
    assert copied(model, model.parent) == ()
    assert {each.name for each in model.parent.iterdir()} == {"net.onnx", "net.bin"}


def test_missing_weights_are_named(model: Path, tmp_path: Path) -> None:
    model.with_name("net.bin").unlink()
    with pytest.raises(ExportError, match=r"net\.bin, which is missing"):
        copied(model, tmp_path)


@pytest.mark.parametrize("place", ["../net.bin", "/net.bin", ""])
def test_weights_outside_the_folder_are_refused(model: Path, place: str) -> None:
    graph = onnx.load(model, load_external_data=False)
    for entry in graph.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = place
    with pytest.raises(ExportError, match="no file beside the graph"):
        external_files(graph, model.parent)


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 50, None])
def test_what_is_no_graph_is_refused(model: Path, content: bytes | None) -> None:
    model.write_bytes(model.read_bytes()[:-7] if content is None else content)
    with pytest.raises(ExportError, match="is no ONNX model, or is cut off"):
        read_onnx(model)
