"""Facts about what ONNX Runtime makes of a quantized graph, and what the audit says of it."""

from collections import Counter
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import Tensor, nn

from potstill.export.audit import demand_share
from potstill.export.deliver import BuiltEngine, OnnxMetadata
from potstill.export.measurement import Audit, LayerPrecision
from potstill.export.onnx_file import exported
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget, optimized
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.cost import macs_by_layer
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import AuditError
from potstill.pipeline.quantization import Quantization


class TestResNet:
    def test_every_layer_runs_in_int8(self, int8_engine: BuiltEngine) -> None:
        audit = int8_engine.audit
        assert audit is not None
        assert {layer.precision for layer in audit.layers} == {"int8"}
        assert audit.int8_share == 1
        assert Counter(layer.reason for layer in audit.layers) == {"runs as QLinearConv": 9, "runs as QGemm": 1}

    def test_additions_and_pooling_run_in_int8_too(self, int8_engine: BuiltEngine) -> None:
        operators = Counter(node.op_type for node in optimized(int8_engine.path).graph.node)
        assert operators["QLinearAdd"] == 3
        assert operators["QLinearGlobalAveragePool"] == 1
        assert operators["ReduceMean"] == 0
        # Only the image is quantized, and only the logits are dequantized.
        assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (1, 1)

    def test_multiply_accumulates_are_those_of_the_model(
        self, int8_engine: BuiltEngine, int8_artifact: Artifact, data: Dataset
    ) -> None:
        assert int8_engine.audit is not None
        counted = {layer.name: layer.macs for layer in int8_engine.audit.layers}
        assert counted == macs_by_layer(int8_artifact.model, data.example())

    def test_a_float_engine_has_no_int8_layer(self, float_engine: BuiltEngine, target: OnnxRuntimeTarget) -> None:
        assert float_engine.audit is None
        audit = target.audit(float_engine.path, "int8")
        assert audit is not None
        assert audit.int8_share == 0
        assert audit.layers[0].reason == "its input is not quantized: it comes from the model's input"


class Chain(nn.Module):
    """Convolutions in a row, one behind an activation that no integer kernel runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.silu = nn.SiLU()
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.second(self.silu(self.first(image)))
        return self.head(self.relu(self.third(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def chain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Chain().eval()


@pytest.fixture(scope="module")
def audit_without(
    chain: nn.Module,
    quantize: Callable[[nn.Module], Quantization],
    any_blueprint: Blueprint,
    data: Dataset,
    target: OnnxRuntimeTarget,
    metadata: OnnxMetadata,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Audit]:
    """Builds the chain with the quantizers of some tensors left out, and audits it."""
    full = quantize(chain)

    def audit(*names: str) -> Audit:
        assert set(names) <= {*full.activations, *full.weights}
        partial = full.model_copy(
            update={
                "weights": tuple(name for name in full.weights if name not in names),
                "activations": {name: grid for name, grid in full.activations.items() if name not in names},
            }
        )
        artifact = Artifact(model=chain, blueprint=any_blueprint, quantization=partial)
        model = exported(artifact, "int8", data.example(), metadata)
        found = target.audit(target.build(model, "int8", tmp_path_factory.mktemp("chain")), "int8")
        assert found is not None
        return found

    return audit


class Encoder(nn.Module):
    """torch's own encoder layer, on the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layer(image[:, 0]).mean(1))


def test_torchs_own_encoder_layer_runs_in_int8_with_both_products_of_its_attention(
    quantize: Callable[[nn.Module], Quantization],
    any_blueprint: Blueprint,
    built: Callable[[Artifact, str], BuiltEngine],
) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    engine = built(Artifact(model=model, blueprint=any_blueprint, quantization=quantize(model)), "int8")
    assert engine.audit is not None
    assert {layer.precision for layer in engine.audit.layers} == {"int8"}
    operators = Counter(node.op_type for node in optimized(engine.path).graph.node)
    assert operators["MatMul"] == operators["FusedMatMul"] == 0


class TestReasons:
    def test_a_fully_quantized_chain_is_all_int8_even_around_silu(self, audit_without: Callable[..., Audit]) -> None:
        audit = audit_without()
        assert audit.int8_share == 1

    def test_what_keeps_a_layer_in_float_is_said_of_each(self, audit_without: Callable[..., Audit]) -> None:
        audit = audit_without("first:conv2d", ":mean")
        found = {layer.name: layer for layer in audit.layers}
        assert {name: layer.precision for name, layer in found.items()} == {
            "first": "float",
            "second": "int8",
            "third": "int8",
            "head": "float",
        }
        assert found["first"].reason.startswith("there is no quantizer on its output: it goes to ")
        assert "Sigmoid (silu)" in found["first"].reason
        assert found["head"].reason.startswith("its input is not quantized: it comes from ")
        in_int8 = found["second"].macs + found["third"].macs
        assert audit.int8_share == pytest.approx(in_int8 / sum(layer.macs for layer in audit.layers))


class TestDemand:
    AUDIT = Audit(
        layers=(
            LayerPrecision(name="stem", kind="Conv", precision="float", macs=300, reason="its weight is not quantized"),
            LayerPrecision(name="body", kind="Conv", precision="int8", macs=700, reason="runs as QLinearConv"),
        ),
        int8_share=0.7,
        min_int8_share=0.9,
    )

    def test_too_small_a_share_names_layers_and_reasons(self) -> None:
        with pytest.raises(
            AuditError, match=r"70\.0%[\s\S]*90\.0%[\s\S]*stem \(Conv, 30\.0%\): its weight is not"
        ) as raised:
            demand_share(self.AUDIT, "onnxruntime cpu int8")
        assert "body" not in str(raised.value)

    def test_a_share_at_the_limit_is_enough(self) -> None:
        demand_share(self.AUDIT.model_copy(update={"min_int8_share": 0.7}), "onnxruntime cpu int8")

    def test_two_layers_of_one_name_do_not_hide_each_other(self, int8_engine: BuiltEngine) -> None:
        names = [node.name for node in onnx.load(int8_engine.path).graph.node]
        assert len(set(names)) == len(names)
