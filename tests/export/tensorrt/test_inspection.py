"""Facts about the audit: what the inspector of TensorRT 10 and of 11 says of each layer, held against the graph.

The documents follow NVIDIA's description of the inspector's JSON; none was written by TensorRT here.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

import onnx
import pytest

from potstill.export.audit import demand_share, weighted_layers, without_float_layers
from potstill.export.dialects.tensorrt import for_tensorrt
from potstill.export.half import in_half
from potstill.export.tensorrt.inspection import engine_layers, kinds, operator_times_of, standing_for, tensor_remark
from potstill.export.tensorrt.precision_audit import audited
from potstill.pipeline.errors import AuditError, ExportError

Version = Literal[10, 11]
FORMATS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "bf16": "Row major linear BF16 format",
    "fp8": "Row major linear FP8 format",
    "float": "Row major linear FP32",
}
TYPES = {"int8": "Int8", "fp16": "Half", "bf16": "BFloat16", "fp8": "FP8", "float": "Float"}


def tensor(kind: str, version: Version, name: str = "t") -> dict[str, Any]:
    shown = {"Format/Datatype": FORMATS[kind]} if version == 10 else {"Format": FORMATS[kind], "DataType": TYPES[kind]}
    return {"Name": name, "Location": "Device", "Dimensions": [1, 8, 16, 16], **shown}


def convolution(node: str, kind: str, version: Version, **changes: Any) -> dict[str, Any]:
    """As a convolution with the nodes that were fused into it is told."""
    fused = (node, f"{node.rpartition('/')[0]}/Relu")
    return {
        "Name": " + ".join(fused),
        "LayerType": "CaskConvolution",
        "Inputs": [tensor(kind, version)],
        "Outputs": [tensor(kind, version)],
        "ParameterType": "Convolution",
        "Weights": {"Type": TYPES[kind], "Count": 1152},
        "Bias": {"Type": "Float", "Count": 8},
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved",
        "Metadata": "\x1e".join(f"[ONNX Layer: {each}]" for each in fused),
        **changes,
    }


def document(layers: list[dict[str, Any]], version: Version) -> str:
    edges = {"Bindings": ["image"]} if version == 10 else {"I/O Tensors": [{"Name": "image", "IOMode": "Input"}]}
    return json.dumps({"Layers": layers, **edges})


def engine(
    model: onnx.ModelProto, kind: str, version: Version, others: Mapping[str, dict[str, Any]] | None = None
) -> str:
    """An engine that runs every layer of a graph in one type, but for `others`, among layers that only move values."""
    copied = {
        "Name": "Reformatting CopyNode for Input Tensor 0 to conv1/Conv",
        "LayerType": "Reformat",
        "Inputs": [tensor("float", version)],
        "Outputs": [tensor(kind, version)],
        "Metadata": "[ONNX Layer: conv1/Conv]",
    }
    nodes = [layer.node.name for layer in weighted_layers(model)]
    return document(
        [copied, *((others or {}).get(node) or convolution(node, kind, version) for node in nodes)], version
    )


@pytest.fixture(scope="session")
def int8_form(int8_graph: onnx.ModelProto) -> onnx.ModelProto:
    """As TensorRT is given it."""
    return for_tensorrt(int8_graph).model


@pytest.fixture(scope="session")
def half_graph(float_graph: onnx.ModelProto) -> onnx.ModelProto:
    """In fp16, but for a layer whose values reach too far."""
    return in_half(float_graph, "fp16", {"layer3.0.conv2/Conv:out": 1e6}).model


@pytest.mark.parametrize("version", [10, 11])
class TestAudit:
    def test_an_engine_that_runs_everything_as_asked_has_the_whole_share(
        self, int8_form: onnx.ModelProto, version: Version
    ) -> None:
        audit = audited(int8_form, engine(int8_form, "int8", version), "int8", 0.9)
        assert audit.int8_share == 1
        assert {layer.precision for layer in audit.layers} == {"int8"}
        assert {layer.reason for layer in audit.layers} == {"runs as CaskConvolution"}
        assert len(audit.layers) == 10
        demand_share(audit, "tensorrt cuda int8")

    def test_one_layer_in_another_type_is_named_with_what_it_reads(
        self, int8_form: onnx.ModelProto, version: Version
    ) -> None:
        node = "layer2.0.conv1/Conv"
        information = engine(int8_form, "int8", version, {node: convolution(node, "fp16", version)})
        audit = audited(int8_form, information, "int8", 0.95)
        (other,) = (layer for layer in audit.layers if layer.precision != "int8")
        assert (other.name, other.precision) == ("layer2.0.conv1", "fp16")
        said = "TensorRT computes it in fp16, as CaskConvolution, which reads fp16, with weights in fp16"
        assert other.reason == said
        assert audit.int8_share == pytest.approx(1 - other.macs / sum(layer.macs for layer in audit.layers))
        with pytest.raises(AuditError, match=rf"Not in int8 are\n  layer2\.0\.conv1 \(Conv, .*{said}"):
            demand_share(audit, "tensorrt cuda int8")

    def test_an_int8_engine_that_runs_in_fp16_fails(self, int8_form: onnx.ModelProto, version: Version) -> None:
        audit = audited(int8_form, engine(int8_form, "fp16", version), "int8", 0.9)
        assert audit.int8_share == 0
        with pytest.raises(AuditError, match=r"0\.0% of the multiply-accumulates run in int8"):
            demand_share(audit, "tensorrt cuda int8")

    def test_an_fp16_engine_that_runs_in_float_fails(self, half_graph: onnx.ModelProto, version: Version) -> None:
        with pytest.raises(AuditError, match=r"run in fp16.* In float are"):
            demand_share(audited(half_graph, engine(half_graph, "float", version), "fp16", 0.9), "tensorrt cuda fp16")

    def test_what_the_graph_itself_has_in_float_is_told(self, half_graph: onnx.ModelProto, version: Version) -> None:
        node = "layer3.0.conv2/Conv"
        information = engine(half_graph, "fp16", version, {node: convolution(node, "float", version)})
        audit = audited(half_graph, information, "fp16", 0.0)
        (other,) = (layer for layer in audit.layers if layer.precision != "fp16")
        assert other.name == "layer3.0.conv2"
        assert "the graph that TensorRT was given has it in float32" in other.reason

    def test_a_layer_that_no_layer_of_the_engine_names_counts_as_float(
        self, int8_form: onnx.ModelProto, version: Version
    ) -> None:
        lost = {"conv1/Conv": convolution("elsewhere/Conv", "int8", version)}
        audit = audited(int8_form, engine(int8_form, "int8", version, lost), "int8", 0.9)
        (other,) = (layer for layer in audit.layers if layer.precision != "int8")
        assert (other.name, other.precision) == ("conv1", "float")
        assert "no layer of the engine names it" in other.reason

    def test_int8_codes_that_are_read_by_a_wider_kernel_are_no_int8(
        self, int8_form: onnx.ModelProto, version: Version
    ) -> None:
        wide = {"conv1/Conv": convolution("conv1/Conv", "int8", version, Weights={"Type": "Half", "Count": 72})}
        audit = audited(int8_form, engine(int8_form, "int8", version, wide), "int8", 0.9)
        assert audit.layers[0].precision == "fp16"

    def test_layers_that_the_quantize_stage_left_do_not_count(
        self, int8_form: onnx.ModelProto, version: Version
    ) -> None:
        others = {
            node: convolution(node, "fp16", version)
            for node in (layer.node.name for layer in weighted_layers(int8_form) if layer.path.startswith("layer1"))
        }
        audit = audited(int8_form, engine(int8_form, "int8", version, others), "int8", 0.9)
        with pytest.raises(AuditError):
            demand_share(audit, "tensorrt cuda int8")
        demand_share(without_float_layers(audit, ["layer1"]), "tensorrt cuda int8")


class TestLayers:
    def test_a_compiled_product_is_found_beside_what_prepares_it(self) -> None:
        moved = {
            "Name": "__myl_Move_myl0_1",
            "LayerType": "kgen",
            "Inputs": [tensor("float", 10)],
            "Outputs": [tensor("int8", 10)],
            "Metadata": "[ONNX Layer: layers.0/MatMul]",
        }
        product = {
            "Name": "layers_0/MatMul_myl0_2",
            "LayerType": "gemm",
            "Inputs": [tensor("int8", 10)],
            "Outputs": [tensor("fp16", 10)],
            "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn",
            "Metadata": "[ONNX Layer: layers.0/MatMul]\x1f[ONNX Layer: layers.0/Add]",
        }
        layers = engine_layers(document([moved, product], 10))
        assert [layer.kind for layer in standing_for("layers.0/MatMul", layers)] == ["gemm"]
        assert layers[1].computes_in == "int8"
        assert layers[1].nodes == {"layers.0/MatMul", "layers.0/Add"}

    def test_without_metadata_the_name_tells_the_nodes(self) -> None:
        named = convolution("a.0/Conv", "fp16", 10, Metadata="", Name="a.0/Conv + PWN(a.1/Relu) || b/Conv")
        compiled = convolution("c.0/MatMul", "fp16", 10, Metadata="", Name="c_0/MatMul_myl3_17")
        layers = engine_layers(document([named, compiled], 10))
        assert layers[0].nodes == {"a.0/Conv", "a.1/Relu", "b/Conv"}
        assert standing_for("b/Conv", layers) == (layers[0],)
        assert standing_for("c.0/MatMul", layers) == (layers[1],)

    def test_types_are_known_in_every_way_they_are_written(self) -> None:
        texts = {
            "Row major linear FP32": "float",
            "Row major Int8 format": "int8",
            "Half": "fp16",
            "BFloat16": "bf16",
            "FP8": "fp8",
            "E4M3": "fp8",
            "Row major linear UInt8 format": "uint8",
            "Int64": "int64",
            "Bool": "bool",
            "N/A due to dynamic shapes": "unknown",
        }
        layers = [
            convolution("a/Conv", "int8", 10, Inputs=[{"Name": "t", "Format/Datatype": text}], Weights={})
            for text in texts
        ]
        assert [layer.inputs[0] for layer in engine_layers(document(layers, 10))] == list(texts.values())

    def test_the_type_of_version_11_counts_and_not_its_format(self) -> None:
        given = {"Name": "t", "Format": "Row major linear FP16 format (kLINEAR)", "DataType": "Float"}
        (layer,) = engine_layers(document([convolution("a/Conv", "float", 11, Inputs=[given])], 11))
        assert layer.computes_in == "float"

    def test_names_alone_are_refused(self) -> None:
        with pytest.raises(ExportError, match="detailed profiling verbosity"):
            engine_layers(json.dumps({"Layers": ["conv1 + relu"], "Bindings": []}))

    def test_kinds_are_counted_with_and_without_details(self) -> None:
        layers = [convolution("a/Conv", "int8", 10), convolution("b/Conv", "int8", 10)]
        assert kinds(document(layers, 10)) == {"CaskConvolution": 2}
        assert kinds(json.dumps({"Layers": ["a", "b", "c"]})) == {"layer": 3}

    @pytest.mark.parametrize("text", ["", "[1]", "{"])
    def test_what_is_no_such_document_is_refused(self, text: str) -> None:
        with pytest.raises(ExportError, match="engine inspector returned"):
            engine_layers(text)

    def test_tensors_are_counted_by_type(self) -> None:
        layers = engine_layers(
            document([convolution(f"{kind}/Conv", kind, 11) for kind in ("int8", "int8", "fp16")], 11)
        )
        assert tensor_remark(layers) == "of the 3 tensors that its 3 layers make, are 2 int8, 1 fp16"


def test_a_profile_becomes_the_times_of_the_model_s_layers() -> None:
    layers = engine_layers(document([convolution("layer1.0.conv1/Conv", "int8", 10)], 10))
    profile = {layers[0].name: [3.0, 1.0, 2.0], "Reformatting CopyNode": [0.5]}
    times = operator_times_of(profile, layers)
    assert [(time.layer, time.operator, time.ms) for time in times] == [
        ("layer1.0.conv1", "CaskConvolution", 2.0),
        ("", "Reformatting CopyNode", 0.5),
    ]
