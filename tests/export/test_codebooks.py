"""Facts about engines whose weights share values: small files, and nothing else that is different."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from potstill.export.codebooks import with_codebooks, with_floats, with_whole_numbers
from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.onnx_file import exported, exported_layer
from potstill.export.runtimes.onnx_runtime import Engine, optimized
from potstill.export.runtimes.openvino_runtime import OpenVinoTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError
from potstill.pipeline.sharing import Cluster, Codebook, SharedWeight, plain, share
from potstill.stages.clustering.kmeans import nearest_centres

LAYERS = ("conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.shortcut.0", "linear")


def clustered(model: nn.Module, paths: tuple[str, ...], clusters: int) -> None:
    """Let the weights of layers share values, in place."""
    for path in paths:
        layer = model.get_submodule(path)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        numbers = nearest_centres(weight.flatten(), clusters)
        share(layer, SharedWeight(weight.shape, Codebook(clusters=clusters), numbers))


@pytest.fixture
def new_shared(float_artifact: Artifact) -> Callable[[int], Artifact]:
    """Some layers of the float network with so many values each."""

    def make(clusters: int) -> Artifact:
        model = Artifact.executable(float_artifact, {})
        clustered(model, LAYERS, clusters)
        edit = Cluster(layers=dict.fromkeys(LAYERS, Codebook(clusters=clusters)))
        return replace(float_artifact, model=model, blueprint=float_artifact.blueprint.with_edit(edit))

    return make


@pytest.mark.parametrize("clusters", [7, 256])
def test_the_engine_computes_what_the_model_computes(
    clusters: int, new_shared: Callable[[int], Artifact], built: Callable[[Artifact, str], BuiltEngine]
) -> None:
    assert built(new_shared(clusters), "fp32").parity.max_relative < 1e-5


def test_the_runtime_runs_the_same_operators_as_without_codebooks(
    new_shared: Callable[[int], Artifact],
    built: Callable[[Artifact, str], BuiltEngine],
    float_engine: BuiltEngine,
) -> None:
    shared = built(new_shared(16), "fp32")
    ours, theirs = (
        [(node.op_type, len(node.input)) for node in optimized(engine.path).graph.node]
        for engine in (shared, float_engine)
    )
    assert ours == theirs


def test_the_file_has_no_float_copy_of_the_weights_and_equal_weights_give_equal_bytes(
    new_shared: Callable[[int], Artifact], data: Dataset, metadata: OnnxMetadata
) -> None:
    model, again = (exported(new_shared(16), "fp32", data.example(), metadata) for _ in range(2))
    assert model.SerializeToString() == again.SerializeToString()
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert not stored.keys() & {f"{path}.weight" for path in LAYERS}
    packed = [tensor for tensor in stored.values() if tensor.data_type == onnx.TensorProto.UINT8]
    # layer2.0.conv2 has 16 · 16 · 9 weights of four bits.
    assert 16 * 16 * 9 // 2 in {len(tensor.raw_data) for tensor in packed}


def float_weights(model: onnx.ModelProto) -> dict[str, Any]:
    """The constants of a graph that are no integers, by name."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}


class EveryLayer(nn.Module):
    """An embedding, linear layers on tokens, and layers with batch norms that the exporter folds."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tokens = nn.Embedding(50, 16), nn.Linear(16, 24)
        self.bare, self.conv, self.norm = nn.Linear(24, 24, bias=False), nn.Conv1d(24, 24, 3), nn.BatchNorm1d(24)
        self.up, self.norm2 = nn.ConvTranspose1d(24, 16, 2, 2), nn.BatchNorm1d(16)
        self.hidden, self.norm3, self.head = nn.Linear(16, 10), nn.BatchNorm1d(10), nn.Linear(10, 4)

    def forward(self, words: Tensor) -> Tensor:
        x = self.bare(torch.relu(self.tokens(self.words(words)))).transpose(1, 2)
        x = self.norm2(self.up(torch.relu(self.norm(self.conv(x))))).mean(2)
        return self.head(self.norm3(self.hidden(x)))


def test_every_kind_of_layer_is_stored_by_its_codebook(tmp_path_factory: pytest.TempPathFactory) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = EveryLayer().eval()
        for norm in (network.norm, network.norm2, network.norm3):
            assert norm.running_var is not None
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
    paths = ("words", "tokens", "bare", "conv", "up", "hidden", "head")
    clustered(network, paths, 12)
    inputs = {"words": torch.arange(24).view(2, 12)}
    model = exported_layer(plain(network), inputs)
    original = float_weights(model)
    with_codebooks(model, network)
    onnx.checker.check_model(model, full_check=True)
    file = tmp_path_factory.mktemp("every") / "model.onnx"
    file.write_bytes(model.SerializeToString())
    with Engine(file) as engine, torch.no_grad():
        outputs = engine.run({name: tensor.numpy() for name, tensor in inputs.items()})["logits"]
        np.testing.assert_allclose(outputs, network(*inputs.values()).numpy(), atol=1e-6)
    for name, values in original.items():
        np.testing.assert_allclose(values, float_weights(with_floats(model))[name], atol=1e-6)
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(max(tensor.dims) <= 24 and len([size for size in tensor.dims if size > 1]) <= 1 for tensor in floats)


def test_a_weight_that_the_exporter_changed_otherwise_is_refused() -> None:
    network = nn.Sequential(nn.Linear(8, 8))
    model = exported_layer(network, {"x": torch.rand(2, 8)})
    clustered(network, ("0",), 4)
    with pytest.raises(ExportError, match="the exported weight of `0` is not made of its codebook"):
        with_codebooks(model, network)


def test_a_layer_that_the_graph_does_not_have_is_refused() -> None:
    network = nn.Sequential(nn.Linear(8, 8))
    model = exported_layer(nn.Sequential(nn.ReLU()), {"x": torch.rand(2, 8)})
    clustered(network, ("0",), 4)
    with pytest.raises(ExportError, match="no layer of that name reads them as a constant"):
        with_codebooks(model, network)


@pytest.mark.parametrize("clusters", [7, 16])
def test_numbers_of_a_byte_each_give_the_same_weights_without_operators_on_bits(
    clusters: int, new_shared: Callable[[int], Artifact], data: Dataset, metadata: OnnxMetadata
) -> None:
    model = exported(new_shared(clusters), "fp32", data.example(), metadata)
    whole = with_whole_numbers(model)
    assert not {"BitShift", "BitwiseAnd", "BitwiseOr"} & {node.op_type for node in whole.graph.node}
    ours, theirs = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in with_floats(each).graph.initializer}
        for each in (whole, model)
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert len(whole.SerializeToString()) < len(with_floats(model).SerializeToString())


def test_openvino_computes_what_the_model_computes_from_a_smaller_file(
    new_shared: Callable[[int], Artifact], data: Dataset, metadata: OnnxMetadata, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    artifact = new_shared(7)
    engine = build_engine(artifact, OpenVinoTarget(), "fp32", tmp_path, data, metadata=metadata)
    assert engine.parity.max_relative < 1e-5
    weights = sum(artifact.model.get_submodule(path).weight.numel() for path in LAYERS)
    everything = sum(tensor.numel() for tensor in plain(artifact.model).parameters())
    assert (tmp_path / "model.bin").stat().st_size < 4 * everything - 2 * weights
