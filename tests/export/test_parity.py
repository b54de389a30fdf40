"""Facts about the comparison of engines with the models they were built from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from potstill.export.deliver import BuiltEngine
from potstill.export.measurement import Parity
from potstill.export.parity import demand_parity, parity_of
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ParityError

Change = Callable[[NDArray[np.float32]], None]


def tampered(engine: BuiltEngine, folder: Path, tensor: str, change: Change) -> Path:
    """A copy of the engine's file with one stored tensor changed."""
    model = onnx.load(engine.path)
    (found,) = (each for each in model.graph.initializer if each.name == tensor)
    values = onnx.numpy_helper.to_array(found).copy()
    change(values)
    found.CopyFrom(onnx.numpy_helper.from_array(values, tensor))
    file = folder / "model.onnx"
    onnx.save(model, file)
    return file


def weight_behind(engine: BuiltEngine, layer: str) -> str:
    """The name of a quantized layer's stored weight."""
    nodes = onnx.load(engine.path).graph.node
    (dequantized,) = (
        node.input[1] for node in nodes if node.name.rpartition("/")[0] == layer and node.op_type == "Conv"
    )
    return next(node.input[0] for node in nodes if dequantized in node.output)


def test_a_float_engine_agrees_to_the_last_digits(float_engine: BuiltEngine) -> None:
    assert float_engine.parity.passed
    assert float_engine.parity.max_relative < 1e-5
    assert float_engine.parity.agreement == 1


def test_an_int8_engine_agrees_with_its_fake_quantized_model(int8_engine: BuiltEngine) -> None:
    assert int8_engine.parity.passed
    assert int8_engine.parity.mean_relative < 0.01
    assert "fake-quantized" in int8_engine.parity.reference


def test_one_changed_weight_of_a_float_engine_is_noticed(
    float_engine: BuiltEngine, float_artifact: Artifact, data: Dataset, target: OnnxRuntimeTarget, tmp_path: Path
) -> None:
    def change(weight: NDArray[np.float32]) -> None:
        weight[0, 0, 1, 1] += 0.01

    with target.open(tampered(float_engine, tmp_path, "layer2.0.conv1.weight", change)) as engine:
        parity = parity_of(engine, float_artifact, data, "fp32")
    assert not parity.passed
    with pytest.raises(ParityError, match=r"64 test samples[\s\S]*differ by up to [\d.e-]+ \([\d.]+%"):
        demand_parity(parity, "fp32")


def test_a_layer_on_the_wrong_scale_of_an_int8_engine_is_noticed(
    int8_engine: BuiltEngine, int8_artifact: Artifact, data: Dataset, target: OnnxRuntimeTarget, tmp_path: Path
) -> None:
    def change(weight: NDArray[np.float32]) -> None:
        weight //= 2

    name = weight_behind(int8_engine, "layer2.0.conv1")
    with target.open(tampered(int8_engine, tmp_path, name, change)) as engine:
        parity = parity_of(engine, int8_artifact, data, "int8")
    assert not parity.passed


def test_outputs_that_are_no_numbers_are_an_error(
    float_engine: BuiltEngine, float_artifact: Artifact, data: Dataset, target: OnnxRuntimeTarget, tmp_path: Path
) -> None:
    def change(weight: NDArray[np.float32]) -> None:
        weight[...] = np.nan

    with (
        target.open(tampered(float_engine, tmp_path, "linear.bias", change)) as engine,
        pytest.raises(ParityError, match=r"engine's outputs .* NaN"),
    ):
        parity_of(engine, float_artifact, data, "fp32")


def test_a_parity_that_passed_raises_nothing(float_engine: BuiltEngine) -> None:
    parity: Parity = float_engine.parity
    demand_parity(parity, "fp32")
