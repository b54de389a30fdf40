"""ONNX files that someone else made: what is wrong with one, in words, before a runtime says it in its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..pipeline.errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own domain of operators. What other domains hold, only the runtime knows."""

AGAIN = "copy or export it again"

NAMED = 5
"""How many of the missing files or unknown operators are named."""


def demand_sound(file: Path) -> None:
    """Raise ExportError where an ONNX file cannot be read, or lacks what its graph names; nothing is run."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(file, load_external_data=False)  # pyright: ignore[reportUnknownMemberType] - untyped formats
    except OSError as error:
        raise ExportError(f"{file}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ExportError(f"{file}: is no ONNX file, or a truncated one: {error}\nMend: {AGAIN}.") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ExportError(f"{file}: is no ONNX model: it holds no graph with outputs\nMend: {AGAIN}.")
    _demand_all(
        *(file, "files of weights that are not whole", list(_missing_data(model, file.parent))),
        mend="put them where the model was exported to, or export it again with its weights inside",
    )
    _demand_all(
        *(file, "operators that ONNX does not have", sorted(set(_unknown_operators(model)))),
        mend="export the model again without them, or write the domain that they belong to into their nodes",
    )


def _demand_all(file: Path, what: str, missing: list[str], *, mend: str) -> None:
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ExportError(f"{file}: names {what}: {', '.join(missing[:NAMED])}{more}\nMend: {mend}.")


def _missing_data(model: "ModelProto", folder: Path) -> Iterator[str]:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    needed: dict[str, int] = {}
    for tensor in _weights(model.graph):
        if uses_external_data(tensor):
            info = ExternalDataInfo(tensor)
            end = int(info.offset or 0) + int(info.length or 0)
            needed[info.location] = max(end, needed.get(info.location, 0))
    for location, num_bytes in needed.items():
        data = folder / location
        if not data.is_file():
            yield f"{location} (not there; it belongs beside the model)"
        elif data.stat().st_size < num_bytes:
            yield f"{location} (has {data.stat().st_size:,} of {num_bytes:,} bytes)"


def _weights(graph: "GraphProto") -> "Iterator[TensorProto]":
    yield from graph.initializer
    for inner in _inner_graphs(graph):
        yield from _weights(inner)


def _inner_graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _unknown_operators(model: "ModelProto") -> Iterator[str]:
    from onnx import defs

    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = next((versions[name] for name in STANDARD if name in versions), None)
    if version is None or version > defs.onnx_opset_version():
        return  # newer than this onnx: the runtime may know more
    for graph in (model.graph, *_all_inner(model.graph)):
        for node in graph.node:
            if node.domain in STANDARD and not defs.has(node.op_type, version, ""):
                yield f"{node.op_type} (opset {version})"


def _all_inner(graph: "GraphProto") -> "Iterator[GraphProto]":
    for inner in _inner_graphs(graph):
        yield inner
        yield from _all_inner(inner)
