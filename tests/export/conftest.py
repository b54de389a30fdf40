"""Engines of one small residual network, built once for all tests of this folder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset
from potstill.pipeline.fake_quantization import fake_quantized, quantization_of
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.quantization import ActivationRange, Grids, Quantization, capture
from potstill.stages.quantization.folding import fold_batch_norms
from potstill.stages.quantization.placement import place


@pytest.fixture(scope="session")
def target() -> OnnxRuntimeTarget:
    """One thread of the CPU, which every machine has."""
    return OnnxRuntimeTarget()


@pytest.fixture(scope="session")
def metadata() -> OnnxMetadata:
    """With a class name that ASCII cannot hold."""
    return OnnxMetadata(recipe_hash="abc123", stage="train", classes=("ä", "b", "c", "d"))


@pytest.fixture(scope="session")
def quantize(data: Dataset) -> Callable[[nn.Module], Quantization]:
    """Places quantizers on a model and fits them."""
    return partial(quantized, data=data)


def quantized(model: nn.Module, data: Dataset, grids: Grids = "affine") -> Quantization:
    """Quantizers for a model without batch norms, fitted to the test images; 7 bits fit every processor."""
    inputs = data.example(64)
    placement = place(capture(model, inputs))
    unknown = ActivationRange(scale=1.0, zero_point=0)
    quantization = Quantization(
        weight_bits=7,
        weights=placement.weights,
        activations=dict.fromkeys(placement.activations, unknown),
        shared=placement.shared,
        grids=grids,
    )
    graph = fake_quantized(model, quantization, inputs)
    for name in placement.activations:
        graph.activation(name).forget()
    graph.train()
    with torch.no_grad(), graph.rounding(on=False):
        graph(*inputs.values())
    return quantization_of(graph.train(mode=False), quantization)


@pytest.fixture(scope="session")
def any_blueprint(data: Dataset) -> Blueprint:
    """Of the network of these tests; artifacts of hand-written models carry it because they must carry one."""
    return Blueprint(
        model=ResNet(depth=8, width=8),
        input_shapes=data.input_shapes,
        num_classes=data.num_classes,
    )


@pytest.fixture(scope="session")
def float_artifact(any_blueprint: Blueprint) -> Artifact:
    """A ResNet-8 whose weights, biases and batch norms are all far from their defaults."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = any_blueprint.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return Artifact(model=model.eval(), blueprint=any_blueprint)


@pytest.fixture(scope="session")
def int8_artifact(float_artifact: Artifact, data: Dataset) -> Artifact:
    """The same network with every layer quantized."""
    model, edit = fold_batch_norms(float_artifact.model, data.example())
    blueprint = float_artifact.blueprint.with_edit(edit)
    return Artifact(model=model, blueprint=blueprint, quantization=quantized(model, data))


@pytest.fixture(scope="session")
def symmetric_artifact(int8_artifact: Artifact, data: Dataset) -> Artifact:
    """The same network again, its activations on symmetric grids."""
    return replace(int8_artifact, quantization=quantized(int8_artifact.model, data, "symmetric"))


@pytest.fixture(scope="session")
def built(
    data: Dataset, target: OnnxRuntimeTarget, metadata: OnnxMetadata, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Artifact, str], BuiltEngine]:
    """Builds an engine in a folder of its own."""

    def build(artifact: Artifact, precision: str) -> BuiltEngine:
        folder = tmp_path_factory.mktemp(f"engine-{precision}")
        return build_engine(artifact, target, precision, folder, data, metadata=metadata)

    return build


@pytest.fixture(scope="session")
def float_engine(built: Callable[[Artifact, str], BuiltEngine], float_artifact: Artifact) -> BuiltEngine:
    """The float network's engine."""
    return built(float_artifact, "fp32")


@pytest.fixture(scope="session")
def int8_engine(built: Callable[[Artifact, str], BuiltEngine], int8_artifact: Artifact) -> BuiltEngine:
    """The quantized network's engine."""
    return built(int8_artifact, "int8")


@pytest.fixture
def garbage(tmp_path: Path) -> Path:
    """A file that is no model."""
    file = tmp_path / "model.onnx"
    file.write_bytes(b"not a model at all" * 50)
    return file
