"""Facts about the manifest: an engine is loaded only where it was built for, and is what was built."""

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest

from potstill.export.runtimes.tensorrt_runtime import TensorRTTarget
from potstill.export.tensorrt.engine_files import nothing_left_of_failure, rebuild
from potstill.export.tensorrt.manifest import (
    Device,
    Manifest,
    TensorFacts,
    device_mismatch,
    device_problem,
    manifest_file,
)
from potstill.export.tensorrt.plan import BuildPlan, HardwareCompatibility, ProfileShape
from potstill.pipeline.errors import ExportError

A10 = Device(gpu="NVIDIA A10", compute_capability=(8, 6), tensorrt="10.16.1", cuda="12.9", driver="580.1")
PLAN = BuildPlan(
    profile={"image": ProfileShape(least=(1, 3), usual=(1, 3), most=(8, 3))},
    tf32=False,
    sparse_weights=False,
    version_compatible=False,
    hardware_compatibility="none",
    optimization_level=3,
    workspace_bytes=None,
)
CONTENT, GRAPH = b"an engine", b"a graph"


def manifest(*, compatibility: HardwareCompatibility = "none", version_compatible: bool = False) -> Manifest:
    return Manifest(
        engine_sha256=hashlib.sha256(CONTENT).hexdigest(),
        onnx="model.onnx",
        onnx_sha256=hashlib.sha256(GRAPH).hexdigest(),
        precision="fp16",
        device=A10,
        plan=PLAN.model_copy(
            update={"hardware_compatibility": compatibility, "version_compatible": version_compatible}
        ),
        inputs={"image": TensorFacts(shape=(None, 3), dtype="float32", least=(1, 3), most=(8, 3))},
        outputs={"logits": TensorFacts(shape=(None, 4), dtype="float32")},
        timing_cache=None,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine's file with its manifest and its graph; what is in them is no engine and no graph."""
    file = tmp_path / "model.engine"
    file.write_bytes(CONTENT)
    (tmp_path / "model.onnx").write_bytes(GRAPH)
    manifest().write(file)
    return file


def here(**changes: object) -> Device:
    return A10.model_copy(update=changes)


class TestDevice:
    def test_what_it_was_built_on_is_what_it_fits(self) -> None:
        assert device_mismatch(manifest(), A10) is None
        assert device_mismatch(manifest(), here(driver="999", cuda="12.8")) is None

    @pytest.mark.parametrize(
        ("compatibility", "other", "message"),
        [
            ("none", {"gpu": "NVIDIA A40"}, "built for NVIDIA A10 with 8.6, and this is NVIDIA A40 with 8.6"),
            (
                "none",
                {"gpu": "NVIDIA H100", "compute_capability": (9, 0)},
                "built for NVIDIA A10 with 8.6, and this is NVIDIA H100 with 9.0",
            ),
            ("none", {"tensorrt": "10.16.2"}, r"built with TensorRT 10.16.1, and 10.16.2 is installed"),
            ("same_compute_capability", {"gpu": "NVIDIA A40"}, None),
            ("same_compute_capability", {"compute_capability": (8, 9)}, "built for compute capability 8.6, and this"),
            ("ampere_plus", {"gpu": "NVIDIA H100", "compute_capability": (9, 0)}, None),
            ("ampere_plus", {"gpu": "Tesla T4", "compute_capability": (7, 5)}, "and this is Tesla T4 with 7.5"),
        ],
    )
    def test_another_one_is_refused_by_both_values_unless_the_engine_allows_it(
        self, compatibility: HardwareCompatibility, other: dict[str, object], message: str | None
    ) -> None:
        found = device_mismatch(manifest(compatibility=compatibility), here(**other))
        assert (found is None) if message is None else (found is not None and message in found)

    @pytest.mark.parametrize(
        ("version", "fits"), [("10.16.9", True), ("10.20.0", True), ("10.15.9", False), ("11.0.0", False)]
    )
    def test_a_version_compatible_engine_runs_on_later_minor_versions(self, version: str, fits: bool) -> None:
        assert (device_mismatch(manifest(version_compatible=True), here(tensorrt=version)) is None) == fits

    @pytest.mark.parametrize(
        ("changes", "precision", "message"),
        [
            ({}, "bf16", None),
            ({}, "fp8", "NVIDIA A10 has compute capability 8.6, and fp8 needs 8.9"),
            ({"compute_capability": (8, 9)}, "fp8", None),
            ({"compute_capability": (7, 5)}, "bf16", "bf16 needs 8.0"),
            ({"tensorrt": "8.6.1"}, "fp16", "TensorRT 8.6.1 is installed"),
            ({"tensorrt": "12.0"}, "fp16", "TensorRT 12.0 is installed"),
        ],
    )
    def test_a_precision_needs_a_gpu_and_a_version_that_have_it(
        self, changes: dict[str, object], precision: str, message: str | None
    ) -> None:
        found = device_problem(here(**changes), precision)
        assert (found is None) if message is None else (found is not None and message in found)


class TestFile:
    def test_comes_back_as_it_was_written(self, engine: Path) -> None:
        assert Manifest.beside(engine) == manifest()
        assert TensorRTTarget().files_of(engine) == (engine, manifest_file(engine))

    def test_an_engine_from_elsewhere_has_none(self, engine: Path) -> None:
        manifest_file(engine).unlink()
        assert Manifest.beside(engine) is None
        assert TensorRTTarget().files_of(engine) == (engine,)

    @pytest.mark.parametrize("damage", [b"{", b'{"version": 1}', b""])
    def test_a_damaged_one_is_named(self, engine: Path, damage: bytes) -> None:
        manifest_file(engine).write_bytes(damage)
        with pytest.raises(ExportError, match=r"model\.engine\.json is damaged"):
            Manifest.beside(engine)

    @pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT + b"x"])
    def test_an_engine_that_is_not_what_was_built_is_refused_before_tensorrt_sees_it(
        self, engine: Path, content: bytes
    ) -> None:
        engine.write_bytes(content)
        with (
            pytest.raises(ExportError, match=r"its bytes are not those that were built: sha256[\s\S]*rebuild\("),
            TensorRTTarget().open(engine),
        ):
            pass

    def test_a_missing_engine_is_said_to_be_missing(self, tmp_path: Path) -> None:
        with (
            pytest.raises(ExportError, match="there is no engine file"),
            TensorRTTarget().open(tmp_path / "model.engine"),
        ):
            pass


class TestRebuild:
    def test_is_refused_where_the_graph_is_another(self, engine: Path) -> None:
        engine.with_name("model.onnx").write_bytes(b"another")
        with pytest.raises(ExportError, match=r"model\.onnx has changed since: sha256"):
            rebuild(engine)

    def test_is_refused_where_the_graph_is_gone(self, engine: Path) -> None:
        engine.with_name("model.onnx").unlink()
        with pytest.raises(ExportError, match=r"model\.onnx is missing"):
            TensorRTTarget().rebuild(engine)

    def test_is_refused_without_a_manifest(self, engine: Path) -> None:
        manifest_file(engine).unlink()
        with pytest.raises(ExportError, match="has no manifest"):
            rebuild(engine)


def test_a_failed_build_leaves_an_older_engine_and_removes_what_is_none(engine: Path) -> None:
    onnx = engine.with_name("model.onnx")
    with suppress(ExportError), nothing_left_of_failure(onnx):
        raise ExportError("refused")
    assert onnx.is_file()
    engine.unlink()
    with suppress(ExportError), nothing_left_of_failure(onnx):
        raise ExportError("refused")
    assert not onnx.exists()
