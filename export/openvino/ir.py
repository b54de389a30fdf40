"""An exported graph as OpenVINO's own files: the graph as XML, the weights beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...pipeline.errors import ExportError
from .runtime_graph import PART
from .session import BIN, ONNX, XML, Refusal, converted, openvino, version

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

NAME = "model"


def write(model: "ModelProto", exported: "ModelProto", folder: Path) -> Path:
    """Leave ``model.xml`` and ``model.bin`` of a graph in a folder; returns the first.

    Beside them is what the graph is a dialect of, as ``model.onnx``. All three or none: ExportError when OpenVINO
    cannot convert the graph. Equal graphs give equal bytes.
    """
    with TemporaryDirectory(dir=folder, prefix=".building-") as scratch:
        onnx_file, xml = (Path(scratch) / f"{NAME}{ending}" for ending in (ONNX, XML))
        onnx_file.write_bytes(model.SerializeToString(deterministic=True))
        try:
            made = converted(onnx_file)
        except Refusal as why:
            raise ExportError(
                f"OpenVINO {version()} cannot convert the exported graph: {why}\n"
                "Mend: replace the operator in the model, install a newer openvino, or take this target out."
            ) from why
        _name_parts(made, model.graph)
        # Its default is to store float32 weights in 16 bits.
        openvino().save_model(made, xml, compress_to_fp16=False)
        onnx_file.write_bytes(exported.SerializeToString(deterministic=True))
        for ending in (ONNX, BIN, XML):
            xml.with_suffix(ending).replace(folder / f"{NAME}{ending}")
    return folder / f"{NAME}{XML}"


def remove(file: Path) -> None:
    """Take away what `write` left."""
    for ending in (XML, BIN, ONNX):
        file.with_suffix(ending).unlink(missing_ok=True)


def _name_parts(model: Any, graph: "GraphProto") -> None:
    """Name what a node was split into by the node, a bias by its layer, and constants by what reads them.

    OpenVINO names a node's last operator by the node, the one that makes an output by the output, and the others by a
    number that it counts up as long as the process lives: then no file is like another, and of a layer whose bias was
    fused there is only the name of the addition.
    """
    outputs = {value.name for value in graph.output}
    nodes = {node.name: node.name for node in graph.node}
    nodes |= {name: node.name for node in graph.node for name in node.output if name in outputs}
    operators: list[Any] = model.get_ordered_ops()
    places = {str(operator.get_name()): place for place, operator in enumerate(operators)}
    owners = _owners(operators, places, nodes)
    taken: Counter[str] = Counter()
    for place, operator in enumerate(operators):
        kind, layer = str(operator.get_type_name()), _layer_of_bias(operator)
        if kind == "Parameter":
            continue
        owner = owners[place if layer is None else places[layer.get_name()]]
        whole = layer is None and operator.get_friendly_name() in nodes
        name = owner if whole else f"{owner}{PART}{kind}"
        taken[name] += 1
        operator.set_friendly_name(name if taken[name] == 1 else f"{name}{taken[name]}")


def _owners(operators: Sequence[Any], places: Mapping[str, int], nodes: Mapping[str, str]) -> list[str]:
    """The exported node that each operator belongs to: its own, or that of the first one that reads it."""
    owners = [""] * len(operators)
    for place in reversed(range(len(operators))):
        readers = (port.get_node() for output in operators[place].outputs() for port in output.get_target_inputs())
        first = min((places[reader.get_name()] for reader in readers), default=place)
        owners[place] = nodes.get(operators[place].get_friendly_name(), owners[first])
    return owners


def _layer_of_bias(operator: Any) -> Any | None:
    """The matrix product that an addition of a constant, and nothing else, reads."""
    if operator.get_type_name() != "Add":
        return None
    sources = [value.get_node() for value in operator.input_values()]
    for layer, bias in (sources, sources[::-1]):
        alone = sum(len(output.get_target_inputs()) for output in layer.outputs()) == 1
        if layer.get_type_name() == "MatMul" and bias.get_type_name() == "Constant" and alone:
            return layer
    return None
