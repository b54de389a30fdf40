"""Facts about ONNX Runtime's engines on an NVIDIA GPU; what needs one is skipped where there is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.dialects import for_onnxruntime_cuda
from potstill.export.latency import compare
from potstill.export.measurement import Energy, NotMeasured
from potstill.export.onnx_file import exported
from potstill.export.onnx_sessions.cuda import load_problem
from potstill.export.onnx_sessions.cuda_engine import CudaEngine
from potstill.export.onnx_sessions.session import onnxruntime
from potstill.export.parity import numpy_inputs
from potstill.export.proof import Unoptimised
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.target import EngineFile
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import AuditError, ExportError, MissingDependency
from tests.support.gpus import PROBLEM

Build = Callable[..., BuiltEngine]


@pytest.fixture
def build(data: Dataset, metadata: OnnxMetadata, tmp_path: Path) -> Build:
    """Builds and accepts an engine on the GPU."""

    def build(artifact: Artifact, precision: str, **settings: Any) -> BuiltEngine:
        folder = tmp_path / "-".join([precision, *settings])
        folder.mkdir()
        target = OnnxRuntimeTarget(device="cuda", precision=(precision,), **settings)
        return build_engine(artifact, target, precision, folder, data, metadata=metadata)

    return build


class TestSettings:
    def test_a_gpu_gets_folders_of_its_own(self) -> None:
        assert OnnxRuntimeTarget(device="cuda").slug == "onnxruntime-cuda"
        assert OnnxRuntimeTarget(device="cuda", tf32=True, cuda_graph=False).slug == "onnxruntime-cuda-tf32-ungraphed"

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tf32": True}, "only `device: cuda` knows tf32"),
            ({"provider": "tensorrt", "prefer_nhwc": True}, "only `device: cuda` knows provider, prefer_nhwc"),
            ({"precision": ["bf16"]}, "CPU has no bfloat16 kernels"),
            ({"device": "cuda", "provider": "tensorrt", "precision": ["bf16"]}, "bf16 cannot run by `provider: tens"),
        ],
    )
    def test_what_the_device_does_not_know_is_refused(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            OnnxRuntimeTarget.model_validate(settings)

    def test_fp32_is_full_fp32_unless_tf32_is_asked_for(self, tmp_path: Path) -> None:
        target, loose = OnnxRuntimeTarget(device="cuda"), OnnxRuntimeTarget(device="cuda", tf32=True)
        assert target.settings_of(tmp_path).options["use_tf32"] == "0"
        assert loose.settings_of(tmp_path).options["use_tf32"] == "1"

    def test_settings_of_sessions_build_an_engine_on_the_gpu_anew_and_none_on_the_cpu(self) -> None:
        gpu, other = OnnxRuntimeTarget(device="cuda"), OnnxRuntimeTarget(device="cuda", prefer_nhwc=True)
        assert gpu.build_settings() != other.build_settings()
        assert set(OnnxRuntimeTarget().build_settings()) == {"runtime", "device", "min_int8_share"}


@pytest.mark.skipif(not PROBLEM, reason="there is a GPU")
class TestWithoutGpu:
    def test_check_says_what_to_install(self) -> None:
        with pytest.raises((MissingDependency, ExportError), match=r"pip install|nvidia-smi"):
            OnnxRuntimeTarget(device="cuda").check()

    def test_a_library_that_does_not_load_is_named(self) -> None:
        said = load_problem("cuda")
        assert said is None or ".so" in said
        if "CUDAExecutionProvider" not in onnxruntime().get_available_providers():
            assert said is not None
            assert "libonnxruntime_providers_cuda.so" in said

    def test_nothing_runs_on_the_cpu_instead(self, float_artifact: Artifact, build: Build, tmp_path: Path) -> None:
        with pytest.raises((MissingDependency, ExportError)):
            build(float_artifact, "fp32")
        assert not [*tmp_path.rglob("*.onnx")]


class TestDialect:
    @pytest.mark.parametrize(("which", "precision"), [("float_artifact", "fp32"), ("int8_artifact", "int8")])
    def test_it_computes_what_was_exported(
        self, which: str, precision: str, request: pytest.FixtureRequest, data: Dataset, metadata: OnnxMetadata
    ) -> None:
        model = exported(request.getfixturevalue(which), precision, data.example(), metadata)
        written = for_onnxruntime_cuda(model)
        assert "GlobalAveragePool" in {node.op_type for node in written.graph.node}
        inputs = numpy_inputs(data.example(8))
        before, after = (Unoptimised(each, ["logits"]).run(inputs)["logits"] for each in (model, written))
        np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
class TestCudaEngine:
    @pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 5e-3), ("bf16", 4e-2)])
    def test_it_computes_what_the_model_computes(
        self, float_artifact: Artifact, build: Build, precision: str, limit: float
    ) -> None:
        built = build(float_artifact, precision)
        assert built.parity.max_relative < limit
        if precision != "fp32":
            # A rounding to 16 bits must be seen, or the engine did not compute so.
            assert built.parity.max_relative > 1e-6
            assert f"convolutions and linear layers are computed in {precision}" in built.remarks[0]

    def test_it_runs_on_the_provider_it_was_asked_for(self, float_artifact: Artifact, build: Build) -> None:
        built = build(float_artifact, "fp32")
        with OnnxRuntimeTarget(device="cuda").open(built.path) as engine:
            assert engine.describe().provider == "CUDAExecutionProvider"
        assert not [remark for remark in built.remarks if "CPU" in remark]

    @pytest.mark.parametrize("settings", [{}, {"cuda_graph": False}, {"prefer_nhwc": True}, {"tf32": True}])
    def test_what_is_timed_gives_the_right_outputs(
        self, float_artifact: Artifact, build: Build, data: Dataset, settings: dict[str, bool]
    ) -> None:
        built = build(float_artifact, "fp32", **settings)
        with OnnxRuntimeTarget(device="cuda", **settings).open(built.path) as engine:
            assert isinstance(engine, CudaEngine)
            for batch in (1, 5):  # each has a graph of its own
                inputs = numpy_inputs(data.example(batch))
                engine.bind(inputs)
                assert (engine.timed(20) > 0).all()
                seconds = engine.device_timed(20)
                assert seconds.shape == (20,)
                assert (seconds > 0).all()
                (outputs,) = engine.bound_outputs()
                np.testing.assert_allclose(outputs, engine.run(inputs)["logits"], rtol=1e-2, atol=1e-3)
            assert engine.device_memory_bytes() > 0

    def test_its_device_takes_no_longer_than_its_host_sees(
        self, float_artifact: Artifact, build: Build, data: Dataset
    ) -> None:
        built = build(float_artifact, "fp32")
        with OnnxRuntimeTarget(device="cuda").open(built.path) as engine:
            engine.bind(numpy_inputs(data.example(32)))
            device = engine.device_timed(100)
            assert device is not None
            assert np.median(device) < np.median(engine.timed(100))

    def test_int8_is_refused_because_the_provider_has_none(self, int8_artifact: Artifact, build: Build) -> None:
        with pytest.raises(AuditError, match=r"0\.0% of the multiply[\s\S]*no int8 kernel"):
            build(int8_artifact, "int8")

    def test_int8_is_built_and_told_about_where_no_share_is_demanded(
        self, int8_artifact: Artifact, build: Build
    ) -> None:
        built = build(int8_artifact, "int8", min_int8_share=0.0)
        assert built.audit is not None
        assert built.audit.int8_share == 0
        assert any("0% of its multiply-accumulates run in int8" in remark for remark in built.remarks)

    def test_its_operators_have_times(self, float_artifact: Artifact, build: Build, data: Dataset) -> None:
        built = build(float_artifact, "fp32")
        times = OnnxRuntimeTarget(device="cuda").operator_times(built.path, numpy_inputs(data.example(4)))
        layers = {time.layer for time in times if "Conv" in time.operator}
        assert "layer1.0.conv1" in layers
        assert all(time.ms > 0 for time in times if "Conv" in time.operator)

    def test_it_is_measured_by_both_clocks(self, float_artifact: Artifact, build: Build, data: Dataset) -> None:
        built = build(float_artifact, "fp32")
        file = EngineFile(OnnxRuntimeTarget(device="cuda"), built.path)
        timing = compare(file, file, {1: numpy_inputs(data.example(1))}, energy=True)
        assert timing.on_device is not None
        (latency,) = timing.on_device.latency
        assert 0 < latency.p50_ms < timing.comparisons[0].candidate.p50_ms
        assert timing.on_device.memory_bytes
        assert isinstance(timing.energy, Energy | NotMeasured)

    def test_what_has_no_kernel_there_is_named_and_not_captured(self, tmp_path: Path) -> None:
        file = tmp_path / "model.onnx"
        file.write_bytes(_with_a_determinant().SerializeToString())
        target = OnnxRuntimeTarget(device="cuda")
        with target.open(file) as engine:
            assert isinstance(engine, CudaEngine)
            notes = engine.notes()
            engine.bind({"x": np.eye(3, dtype=np.float32)[None]})
            engine.timed(3)
        assert notes[0] == "run on the CPU: last/Det"
        assert notes[1].startswith("no CUDA graph")


def _with_a_determinant() -> onnx.ModelProto:
    """A ReLU, and a determinant, for which there is no kernel on GPUs."""
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], name="first/Relu"),
        helper.make_node("Det", ["positive"], ["y"], name="last/Det"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])]
    graph = helper.make_graph(nodes, "determinant", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
