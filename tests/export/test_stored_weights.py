"""Facts about engines whose linear layers' weights alone are stored in few bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.export.audit import demand_share
from potstill.export.onnx_file import OUTPUT, OnnxMetadata, exported
from potstill.export.runtimes.onnx_runtime import FILE, OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.errors import AuditError, ExportError
from potstill.pipeline.quantization import Quantization, Scheme, capture
from potstill.stages.quantization.placement import placed
from tests.support.gpus import PROBLEM

TOKENS = {"tokens": torch.randn(3, 6, 40, generator=torch.Generator().manual_seed(1))}
SCHEMES: tuple[Scheme, ...] = ("int4_weights", "int8_weights")


class Network(nn.Module):
    """Linear layers on tokens, one of them twice, and on rows; one group and a quarter of inputs, or less than one."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.twice = nn.Linear(40, 64), nn.Linear(64, 64, bias=False)
        self.hidden, self.narrow = nn.Linear(64, 32), nn.Linear(32, 16)
        self.last, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.mix = nn.Conv1d(64, 64, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(torch.relu(self.expand(tokens)))))
        x = self.mix(x.transpose(1, 2)).mean(2)
        return self.head(torch.relu(self.last(self.narrow(functional.relu6(self.hidden(x))))))


@pytest.fixture(scope="module")
def stored(any_blueprint: Blueprint) -> Callable[[Scheme], Artifact]:
    """The network with its weights in groups of 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Network().eval()

    def make(scheme: Scheme) -> Artifact:
        bits = 4 if scheme == "int4_weights" else 8
        asked = Quantization(scheme=scheme, weight_bits=bits, group_size=32, weights=(), activations={})
        weights = placed(capture(model, TOKENS), asked).weights
        quantization = asked.model_copy(update={"weights": weights})
        return Artifact(model=model, blueprint=any_blueprint, quantization=quantization)

    return make


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_wide_linear_layer_multiplies_by_stored_weights_and_computes_what_the_model_computes(
    scheme: Scheme, stored: Callable[[Scheme], Artifact], metadata: OnnxMetadata, tmp_path: Path
) -> None:
    target, artifact = OnnxRuntimeTarget(min_int8_share=1.0), stored(scheme)
    file = target.build(exported(artifact, scheme, TOKENS, metadata), scheme, tmp_path)
    audit = target.audit(file, scheme)
    assert audit is not None
    found = {layer.name: layer for layer in audit.layers}
    fused = {name for name, layer in found.items() if layer.reason == "runs as MatMulNBits"}
    assert fused == {name for name, layer in found.items() if layer.precision == scheme}
    assert {name.partition("#")[0] for name in fused} == {"expand", "twice", "hidden", "narrow", "head"}
    assert len(audit.layers) == 8  # one of them runs twice
    floats = {name: layer for name, layer in found.items() if layer.precision == "float"}
    assert set(floats) == {"last", "mix"}
    assert all(layer.on_purpose and "its weight is in float" in layer.reason for layer in floats.values())
    assert audit.precision == scheme
    demand_share(audit, "engine")
    with target.open(file) as engine, torch.no_grad():
        ours = engine.run({"tokens": TOKENS["tokens"].numpy()})[OUTPUT]
        theirs = artifact.executable(TOKENS)(TOKENS["tokens"]).numpy()
    # The kernel rounds its inputs to eight bits, group by group.
    assert np.abs(ours - theirs).mean() < 0.03 * theirs.std()


@pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_gpu_multiplies_by_stored_weights_too(
    scheme: Scheme, stored: Callable[[Scheme], Artifact], metadata: OnnxMetadata, tmp_path: Path
) -> None:
    target, artifact = OnnxRuntimeTarget(device="cuda", min_int8_share=1.0), stored(scheme)
    file = target.build(exported(artifact, scheme, TOKENS, metadata), scheme, tmp_path)
    audit = target.audit(file, scheme)
    assert audit is not None
    demand_share(audit, "engine")
    with target.open(file) as engine, torch.no_grad():
        ours = engine.run({"tokens": TOKENS["tokens"].numpy()})[OUTPUT]
        theirs = artifact.executable(TOKENS)(TOKENS["tokens"]).numpy()
    assert np.abs(ours - theirs).mean() < 0.03 * theirs.std()


def test_the_file_holds_two_codes_in_a_byte(stored: Callable[[Scheme], Artifact], metadata: OnnxMetadata) -> None:
    model = exported(stored("int4_weights"), "int4_weights", TOKENS, metadata)
    codes = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [64, 40]]
    assert [tensor.data_type for tensor in codes] == [onnx.TensorProto.UINT4]
    assert len(codes[0].raw_data or codes[0].int32_data) <= 64 * 40 // 2


def test_layers_that_the_runtime_does_not_fuse_are_named(
    stored: Callable[[Scheme], Artifact], metadata: OnnxMetadata, tmp_path: Path
) -> None:
    # Not in ONNX Runtime's dialect: the weights lie the other way round.
    (tmp_path / FILE).write_bytes(
        exported(stored("int4_weights"), "int4_weights", TOKENS, metadata).SerializeToString()
    )
    audit = OnnxRuntimeTarget().audit(tmp_path / FILE, "int4_weights")
    assert audit is not None
    with pytest.raises(AuditError, match=r"0\.0% of the multiply-accumulates run in int4_weights") as caught:
        demand_share(audit, "engine")
    assert "expand (MatMul" in str(caught.value)
    assert "head (Gemm" in str(caught.value)
    assert "did not fuse its weight's DequantizeLinear" in str(caught.value)
    assert "mix" not in str(caught.value)


def test_an_engine_of_another_precision_than_the_models_is_refused(
    stored: Callable[[Scheme], Artifact], metadata: OnnxMetadata
) -> None:
    with pytest.raises(ExportError, match="a model that is quantized to int4_weights: add a quantize stage"):
        exported(stored("int4_weights"), "int8_weights", TOKENS, metadata)
