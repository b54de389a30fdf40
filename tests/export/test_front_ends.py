"""Facts about engines that begin with a front end: every runtime computes it, and in float32."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from potstill.export.deliver import OnnxMetadata, build_engine
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.runtimes.openvino_runtime import OpenVinoTarget
from potstill.export.runtimes.pytorch_runtime import PyTorchTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset
from potstill.pipeline.networks.ds_cnn import DSCNN
from potstill.pipeline.quantization import Quantization
from potstill.pipeline.sources.sound import Sound
from potstill.stages.quantization.folding import fold_batch_norms
from tests.support.sounds import RATE, write_npz

no_openvino = importlib.util.find_spec("openvino") is None


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("tones")
    for split, count in (("train", 30), ("test", 18)):
        write_npz(folder / f"{split}.npz", count, seed=count)
    return Sound(path=folder, rate=RATE, seconds=0.3).load(folder)


@pytest.fixture(scope="module")
def artifact(sounds: Dataset) -> Artifact:
    """A small network whose batch norms have seen the data."""
    blueprint = Blueprint(
        model=DSCNN(width=8, depth=1, stride=1),
        input_shapes=sounds.input_shapes,
        num_classes=3,
        front_end=sounds.front_end,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        model = blueprint.build()
        for _ in range(20):
            model.train()(sounds.train.batch(torch.arange(30)).inputs["audio"])
    return Artifact(model=model.eval(), blueprint=blueprint)


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        (OnnxRuntimeTarget(), "fp16"),
        (PyTorchTarget(), "bf16"),
        pytest.param(OpenVinoTarget(), "fp32", marks=pytest.mark.skipif(no_openvino, reason="no OpenVINO")),
    ],
    ids=["onnxruntime", "pytorch", "openvino"],
)
def test_a_float_engine_computes_what_the_model_computes(
    target: Any, precision: str, sounds: Dataset, artifact: Artifact, metadata: OnnxMetadata, tmp_path: Path
) -> None:
    built = build_engine(artifact, target, precision, tmp_path, sounds, metadata=metadata)
    assert built.parity.passed
    if precision == "fp16":
        graph = onnx.load(built.path).graph
        types = {each.name: each.data_type for each in graph.initializer}
        stay = [kind for name, kind in types.items() if name.startswith("front_end.")]
        assert stay == [onnx.TensorProto.FLOAT] * 3
        assert types["network.layer1.0.pointwise.weight:fp16"] == onnx.TensorProto.FLOAT16


@pytest.mark.skipif(no_openvino, reason="no OpenVINO")
def test_an_int8_engine_of_openvino_leaves_it_in_float(
    sounds: Dataset,
    artifact: Artifact,
    quantize: Callable[..., Quantization],
    metadata: OnnxMetadata,
    tmp_path: Path,
) -> None:
    model, edit = fold_batch_norms(artifact.model, sounds.example())
    assert isinstance(model, nn.Module)
    quantization = quantize.func(model, sounds)  # pyright: ignore[reportFunctionMemberAccess] # a partial of other data
    quantized = Artifact(model=model, blueprint=artifact.blueprint.with_edit(edit), quantization=quantization)
    built = build_engine(quantized, OpenVinoTarget(), "int8", tmp_path, sounds, metadata=metadata)
    assert built.parity.passed
    assert built.audit is not None
    floats = [layer.name.partition("#")[0] for layer in built.audit.layers if layer.precision == "float"]
    assert set(floats) == {"front_end"}
