"""The ONNX file that an engine is built from, kept beside it, whoever made it."""

import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...pipeline.errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

FILE = "model.onnx"


def read_onnx(file: Path) -> "ModelProto":
    """A graph without the weights that lie in other files; ExportError where it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(file.read_bytes())
    except OSError as error:
        raise ExportError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ExportError(f"{file} is no ONNX model, or is cut off: {error}") from error
    if not model.graph.node:
        raise ExportError(f"{file} holds no graph: it is no ONNX model, or is cut off")
    return model


def external_files(model: "ModelProto", folder: Path) -> tuple[Path, ...]:
    """The files in `folder` that hold weights of a graph; ExportError where one is missing, or lies outside."""
    import onnx

    found: dict[str, Path] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts:
            raise ExportError(f"the weight {tensor.name} is stored in {location!r}, which is no file beside the graph")
        found[location] = folder / path
    missing = [str(path) for path in found.values() if not path.is_file()]
    if missing:
        raise ExportError(
            f"the graph's weights lie in {', '.join(missing)}, which is missing.\nMend: put it beside the ONNX file."
        )
    return tuple(found.values())


def _tensors(graph: "GraphProto") -> "list[TensorProto]":
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    constants = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
    return [*graph.initializer, *constants, *(tensor for each in inner for tensor in _tensors(each))]


def copied(file: Path, folder: Path) -> tuple[Path, ...]:
    """Copies of an ONNX file, as ``model.onnx``, and of the files of its weights; none where it lies in that folder."""
    beside = external_files(read_onnx(file), file.parent)
    if file.parent.resolve() == folder.resolve():
        return ()
    made = [Path(shutil.copyfile(file, folder / FILE))]
    for each in beside:
        place = folder / each.relative_to(file.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        made.append(Path(shutil.copyfile(each, place)))
    return tuple(made)
