"""Facts about model repositories for Triton, read by Triton's own schema where the package that brings it is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.export.bundle.manifest import Manifest, Output
from potstill.export.bundle.triton import check_config, config_of, schema
from potstill.export.bundle.writing import Contents, write_bundle
from potstill.export.measurement import EngineMeasurement
from potstill.pipeline.errors import ExportError
from potstill.pipeline.progress import Silent
from tests.pipeline import sample_report

needs_schema = pytest.mark.skipif(schema() is None, reason="tritonclient, which brings Triton's schema, is missing")


@pytest.fixture(scope="module")
def bundle(contents: Contents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "bundle"
    write_bundle(contents, folder, triton=True, replace=False, progress=Silent())
    return folder


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return Manifest.load(bundle)


def batched(engine: EngineMeasurement) -> EngineMeasurement:
    """Measured at batch 1 and 32, the larger one with the higher throughput."""
    sketch = sample_report.SKETCHES[-1]
    one, many = sample_report.engine(sketch, 3.0).latency
    slow = one.model_copy(update={"candidate": one.candidate.model_copy(update={"throughput": 100.0})})
    fast = many.model_copy(update={"candidate": many.candidate.model_copy(update={"throughput": 1000.0})})
    return engine.model_copy(update={"latency": (slow, fast)})


def parsed(text: str) -> Any:
    """As Triton reads it."""
    from google.protobuf import text_format

    return text_format.Parse(text, schema().ModelConfig())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.fixture
def of_runtime(manifest: Manifest, contents: Contents) -> Callable[..., str]:
    """The configuration of an engine of another runtime."""

    def text(runtime: str, device: str = "cpu", **settings: Any) -> str:
        record = manifest.engine.model_copy(update={"runtime": runtime, "device": device, "settings": settings})
        return config_of(manifest.model_copy(update={"engine": record}), batched(contents.engine))

    return text


class TestRepository:
    def test_is_laid_out_as_triton_wants_it(self, bundle: Path) -> None:
        model = bundle / "model_repository" / "bars"
        files = {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()}
        assert files == {"config.pbtxt", "labels.txt", "1/model.onnx"}
        assert (model / "1" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
        assert (model / "labels.txt").read_text().splitlines() == list(Manifest.load(bundle).labels)

    @needs_schema
    def test_has_the_names_shapes_and_types_of_the_engine(self, bundle: Path) -> None:
        config = parsed((bundle / "model_repository" / "bars" / "config.pbtxt").read_text())
        (given,), (made,) = config.input, config.output
        types = schema().DataType  # pyright: ignore[reportOptionalMemberAccess]
        assert (config.name, config.platform, config.default_model_filename) == (
            "bars",
            "onnxruntime_onnx",
            "model.onnx",
        )
        assert (given.name, list(given.dims), types.Name(given.data_type)) == ("image", [1, 16, 16], "TYPE_FP32")
        assert (made.name, list(made.dims), made.label_filename) == ("logits", [4], "labels.txt")
        assert config.parameters["intra_op_thread_count"].string_value == "1"

    @needs_schema
    def test_batches_by_the_knee(self, manifest: Manifest, contents: Contents) -> None:
        config = parsed(config_of(manifest, batched(contents.engine)))
        assert config.max_batch_size == 32
        assert list(config.dynamic_batching.preferred_batch_size) == [32]
        assert config.dynamic_batching.max_queue_delay_microseconds == 32_000
        (group,) = config.instance_group
        assert (group.count, group.kind) == (1, 2)  # KIND_CPU

    @needs_schema
    def test_does_not_batch_where_one_batch_was_measured_and_says_so(
        self, manifest: Manifest, contents: Contents
    ) -> None:
        text = config_of(manifest, contents.engine)
        assert not parsed(text).HasField("dynamic_batching")
        assert "# No dynamic batching: only batch 1 was measured" in text

    @needs_schema
    def test_a_number_a_sample_gets_the_dimension_that_triton_wants(
        self, manifest: Manifest, contents: Contents
    ) -> None:
        scalar = manifest.model_copy(update={"outputs": {"score": Output(shape=(None,), dtype="float32")}})
        (made,) = parsed(config_of(scalar, contents.engine)).output
        assert list(made.dims) == [1]
        assert made.HasField("reshape")
        assert list(made.reshape.shape) == []

    @needs_schema
    def test_names_are_quoted(self, manifest: Manifest, contents: Contents) -> None:
        record = manifest.engine.model_copy(update={"file": 'a "b"\\c\nd.onnx'})
        config = parsed(config_of(manifest.model_copy(update={"engine": record}), contents.engine))
        assert config.default_model_filename == 'a "b"\\c\nd.onnx'

    def test_a_type_that_triton_has_no_name_for_is_refused(self, manifest: Manifest, contents: Contents) -> None:
        strange = manifest.model_copy(update={"outputs": {"z": Output(shape=(None, 2), dtype="complex64")}})
        with pytest.raises(ExportError, match="z is complex64, which has no name in Triton's configuration"):
            config_of(strange, contents.engine)


@needs_schema
class TestRuntimes:
    def test_openvino_is_a_backend_with_its_threads(self, of_runtime: Callable[..., str]) -> None:
        config = parsed(of_runtime("openvino"))
        assert (config.backend, config.platform) == ("openvino", "")
        assert config.parameters["INFERENCE_NUM_THREADS"].string_value == "1"

    def test_tensorrt_is_a_platform_on_gpus(self, of_runtime: Callable[..., str]) -> None:
        config = parsed(of_runtime("tensorrt", "cuda"))
        assert config.platform == "tensorrt_plan"
        assert config.instance_group[0].kind == 1  # KIND_GPU
        assert not config.parameters
        assert not config.optimization.execution_accelerators.gpu_execution_accelerator

    @pytest.mark.parametrize("tf32", [False, True])
    def test_onnx_runtime_on_a_gpu_multiplies_as_it_was_measured(
        self, tf32: bool, of_runtime: Callable[..., str]
    ) -> None:
        config = parsed(of_runtime("onnxruntime", "cuda", tf32=tf32))
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, cuda.parameters["use_tf32"]) == ("cuda", str(int(tf32)))


@needs_schema
def test_what_does_not_fit_the_schema_is_refused() -> None:
    with pytest.raises(ExportError, match=r"does not fit Triton's schema: .*max_bach_size"):
        check_config('name: "a" max_bach_size: 3')
