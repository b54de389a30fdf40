"""Facts about the target: the graphs of every precision, what a recipe may say, and what is said without TensorRT."""

import importlib.util
from pathlib import Path

import onnx
import pytest

from potstill.export.deliver import OnnxMetadata
from potstill.export.dialects.tensorrt import for_tensorrt, is_in_exported_form
from potstill.export.dialects.tensorrt_rules import placement_problems
from potstill.export.parity import numpy_inputs
from potstill.export.proof import Unoptimised
from potstill.export.runtimes.tensorrt_runtime import TensorRTTarget
from potstill.export.target import Source, scheme_of, targets
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError, MissingDependency, PotstillError

TYPE = onnx.TensorProto


@pytest.fixture
def source(symmetric_artifact: Artifact, data: Dataset, metadata: OnnxMetadata) -> Source:
    """The quantized residual network."""
    return Source(artifact=symmetric_artifact, data=data, metadata=metadata)


@pytest.mark.parametrize(
    ("precision", "weights"),
    [
        ("fp32", TYPE.FLOAT),
        ("fp16", TYPE.FLOAT16),
        ("bf16", TYPE.BFLOAT16),
        ("int8", TYPE.INT8),
        ("fp8", TYPE.FLOAT8E4M3FN),
    ],
)
def test_the_graph_of_each_precision_keeps_the_rules_and_holds_its_type(
    source: Source, precision: str, weights: int
) -> None:
    # Each was proven against the model in PyTorch while it was made.
    model, _ = TensorRTTarget().graph(source, precision)
    onnx.checker.check_model(model, full_check=True)
    assert placement_problems(model) == []
    large = [tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert weights in large
    assert (set(large) == {weights}) == (precision != "fp8")
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {TYPE.FLOAT}
    if precision != "bf16":  # which ONNX Runtime cannot run
        outputs = Unoptimised(model).run(numpy_inputs(source.data.example(3)))
        assert outputs["logits"].shape == (3, 4)


def test_a_graph_as_exported_is_brought_into_form_and_leaves_nothing_where_it_is_not_built(
    int8_graph: onnx.ModelProto, tmp_path: Path
) -> None:
    assert is_in_exported_form(int8_graph)
    assert not is_in_exported_form(for_tensorrt(int8_graph).model)
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed, and would build it")
    with pytest.raises(MissingDependency):
        TensorRTTarget().build(int8_graph, "int8", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_model_that_is_not_quantized_has_no_such_engine(
    float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, precision: str
) -> None:
    with pytest.raises(ExportError, match=f"{precision} was asked of a model without int8 grids"):
        TensorRTTarget().graph(Source(artifact=float_artifact, data=data, metadata=metadata), precision)


class TestWithoutTensorRT:
    @pytest.fixture(autouse=True)
    def _without(self) -> None:
        if importlib.util.find_spec("tensorrt") is not None:
            pytest.skip("TensorRT is installed")

    def test_the_check_says_what_to_install(self) -> None:
        with pytest.raises(MissingDependency, match="pip install tensorrt"):
            TensorRTTarget().check()

    def test_an_engine_from_elsewhere_needs_it(self, tmp_path: Path) -> None:
        file = tmp_path / "theirs.plan"
        file.write_bytes(b"an engine of theirs")
        with pytest.raises(MissingDependency, match="pip install tensorrt"), TensorRTTarget().open(file):
            pass

    @pytest.mark.parametrize("within", [True, False])
    def test_someone_else_s_graph_stays_and_copies_go(
        self, float_graph: onnx.ModelProto, tmp_path: Path, within: bool
    ) -> None:
        file = tmp_path / "theirs.onnx"
        onnx.save(float_graph, file)
        folder = tmp_path if within else tmp_path / "ours"
        folder.mkdir(exist_ok=True)
        with pytest.raises(MissingDependency):
            TensorRTTarget().from_file(file, folder)
        assert [each.name for each in tmp_path.rglob("*.onnx")] == ["theirs.onnx"]

    def test_someone_else_s_graph_is_read_before(self, tmp_path: Path) -> None:
        file = tmp_path / "theirs.onnx"
        file.write_bytes(b"")
        with pytest.raises(ExportError, match="is no ONNX model"):
            TensorRTTarget().from_file(file, tmp_path)


def test_it_is_found_by_its_name() -> None:
    assert targets()["tensorrt"] is TensorRTTarget
    assert TensorRTTarget().label == "tensorrt cuda"
    assert TensorRTTarget.suffixes[0] == ".engine"


def test_fp8_is_made_of_the_scheme_int8() -> None:
    assert [scheme_of(each) for each in ("fp8", "int8", "int4_weights", "fp16")] == [
        "int8",
        "int8",
        "int4_weights",
        None,
    ]


def test_no_precision_is_taken_that_it_has_not() -> None:
    with pytest.raises(ValueError, match="precision"):
        TensorRTTarget.model_validate({"runtime": "tensorrt", "precision": ["int4_weights"]})


def test_an_audit_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="has no manifest"):
        TensorRTTarget().audit(tmp_path / "model.engine", "int8")
    assert TensorRTTarget().audit(tmp_path / "model.engine", "fp32") is None
