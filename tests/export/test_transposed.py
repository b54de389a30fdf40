"""Facts about transposed convolutions in int8."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from potstill.export.dialects import for_onnxruntime_cpu
from potstill.export.onnx_file import OUTPUT, OnnxMetadata, exported
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.cost import macs_by_layer
from potstill.pipeline.quantization import ActivationRange, Quantization, capture
from potstill.stages.quantization.folding import fold_batch_norms
from potstill.stages.quantization.placement import place

LAYERS: dict[str, dict[str, Any]] = {
    "kernel = stride": {"kernel_size": 2, "stride": 2},
    "k4 s2 p1": {"kernel_size": 4, "stride": 2, "padding": 1},
    "k3 s2 p1 and one more": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "k5 s3, grouped, not rectified": {"kernel_size": 5, "stride": 3, "padding": 2, "groups": 2, "rectified": False},
    "k4 s2 p3": {"kernel_size": 4, "stride": 2, "padding": 3},
    "by axis": {"kernel_size": (2, 5), "stride": 2, "padding": (0, 1), "output_padding": (1, 0)},
}


def transposed_network(*, rectified: bool = True, **settings: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.ConvTranspose2d(4, 6, **settings)
        return nn.Sequential(layer, nn.ReLU() if rectified else nn.Identity(), nn.Conv2d(6, 2, 1)).eval()


def artifact_of(model: nn.Module, blueprint: Blueprint, inputs: dict[str, torch.Tensor]) -> Artifact:
    """All that `place` finds on one grid; zero is not its lowest code but behind a ReLU."""
    placement = place(capture(model, inputs))
    ranges = {
        name: ActivationRange(scale=0.03, zero_point=0 if "relu" in name else 120) for name in placement.activations
    }
    quantization = Quantization(weight_bits=7, weights=placement.weights, activations=ranges, shared=placement.shared)
    return Artifact(model=model, blueprint=blueprint, quantization=quantization)


def unoptimised(model: onnx.ModelProto, image: torch.Tensor) -> np.ndarray:
    """What the graph computes as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], {"image": image.numpy()})[0])


@pytest.mark.parametrize("settings", LAYERS)
def test_the_convolution_computes_what_the_transposed_one_computes_and_runs_in_int8(
    settings: str, any_blueprint: Blueprint, metadata: OnnxMetadata, tmp_path: Path
) -> None:
    inputs = {"image": torch.randn(3, 4, 7, 6, generator=torch.Generator().manual_seed(1))}
    artifact = artifact_of(transposed_network(**LAYERS[settings]), any_blueprint, inputs)
    written = exported(artifact, "int8", inputs, metadata)
    dialect = for_onnxruntime_cpu(written)
    assert Counter(node.op_type for node in dialect.graph.node)["ConvTranspose"] == 0
    ours, theirs = unoptimised(dialect, inputs["image"]), unoptimised(written, inputs["image"])
    assert ours.shape == theirs.shape
    # Sums in another order may fall on the other side of a rounding: one step of the last grid.
    assert np.abs(ours - theirs).max() <= 0.03 + 1e-6
    assert np.abs(ours - theirs).mean() < 1e-3
    target = OnnxRuntimeTarget()
    audit = target.audit(target.build(written, "int8", tmp_path), "int8")
    assert audit is not None
    assert [(layer.name, layer.reason) for layer in audit.layers] == [
        ("0", "runs as QLinearConv"),
        ("2", "runs as QLinearConv"),
    ]
    if settings == "kernel = stride":
        assert {layer.name: layer.macs for layer in audit.layers} == macs_by_layer(artifact.model, inputs)


@pytest.mark.parametrize("settings", [{"stride": (2, 1)}, {"dilation": 2}])
def test_other_walks_stay_in_float_and_the_audit_says_why(
    settings: dict[str, Any], any_blueprint: Blueprint, metadata: OnnxMetadata, tmp_path: Path
) -> None:
    inputs = {"image": torch.randn(2, 4, 8, 8)}
    artifact = artifact_of(transposed_network(kernel_size=3, **settings), any_blueprint, inputs)
    target = OnnxRuntimeTarget()
    audit = target.audit(target.build(exported(artifact, "int8", inputs, metadata), "int8", tmp_path), "int8")
    assert audit is not None
    first, second = audit.layers
    assert (first.precision, second.precision) == ("float", "int8")
    assert "equal strides and no dilation" in first.reason


def test_a_norm_behind_a_grouped_transposed_convolution_is_folded() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6)).train()
    model(torch.randn(16, 4, 5, 5))
    inputs = {"image": torch.randn(3, 4, 5, 5)}
    folded, edit = fold_batch_norms(model.eval(), inputs)
    assert edit.layers == {"0": "1"}
    torch.testing.assert_close(folded(inputs["image"]), model(inputs["image"]), rtol=1e-4, atol=1e-5)
