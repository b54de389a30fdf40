"""Small ONNX files that no exporter of ours made, sound and broken ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, save
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

Shape = Sequence[int | str]


def model(
    *nodes: NodeProto,
    shape: Shape = ("batch", 4),
    outputs: Shape = ("batch", 4),
    weights: Sequence[TensorProto] = (),
    kind: int = TensorProto.FLOAT,
) -> ModelProto:
    """From the input ``x`` to the output ``y``."""
    ends = make_tensor_value_info("x", kind, shape), make_tensor_value_info("y", TensorProto.FLOAT, outputs)
    graph = make_graph(nodes, "hand-made", [ends[0]], [ends[1]], weights)
    return make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)


def one_operator(file: Path, operator: str, *, shape: Shape = ("batch", 4), outputs: Shape = ("batch", 4)) -> Path:
    """A file of one operator without weights."""
    save(model(make_node(operator, ["x"], ["y"], "only"), shape=shape, outputs=outputs), file)
    return file


def convolutions(file: Path, count: int) -> Path:
    """So many 3×3 convolutions (batch, 4, 8, 8), called ``conv0`` and so on."""
    draws = np.random.default_rng(0)
    names = ["x", *(f"c{number}" for number in range(1, count)), "y"]
    weights = [from_array(draws.standard_normal((4, 4, 3, 3), np.float32) / 6, f"w{number}") for number in range(count)]
    nodes = [
        make_node("Conv", [names[number], f"w{number}"], [names[number + 1]], f"conv{number}", pads=[1, 1, 1, 1])
        for number in range(count)
    ]
    save(model(*nodes, shape=("batch", 4, 8, 8), outputs=("batch", 4, 8, 8), weights=weights), file)
    return file


def with_data_beside(file: Path) -> Path:
    """A product with weights that lie in ``weights.bin`` beside the file."""
    weights = from_array(np.ones((4, 4), np.float32), "w")
    save(
        model(make_node("MatMul", ["x", "w"], ["y"], "product"), weights=[weights]),
        file,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return file
