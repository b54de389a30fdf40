"""Facts about building, accepting, keeping and measuring engines."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine, measure_engine, rehearse_engine
from potstill.export.engine import Array
from potstill.export.measurement import Accuracy, NotMeasured, OperatorTime
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import AuditError, ExportError
from potstill.pipeline.task import Classification


class TestBuiltEngine:
    def test_it_loads_as_it_was_built_wherever_its_folder_went(self, int8_engine: BuiltEngine, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(int8_engine.folder, tmp_path / "moved"))
        loaded = BuiltEngine.load(moved)
        assert loaded == int8_engine.model_copy(update={"folder": moved})
        assert loaded.fingerprint == int8_engine.fingerprint
        assert str(int8_engine.folder) not in (moved / "engine.json").read_text()

    def test_a_record_that_cannot_be_read_is_refused(self, int8_engine: BuiltEngine, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(int8_engine.folder, tmp_path / "copy"))
        (folder / "engine.json").write_text(json.dumps({"label": "x"}))
        with pytest.raises(ExportError, match=r"no readable engine[\s\S]*run again"):
            BuiltEngine.load(folder)
        (folder / "engine.json").unlink()
        with pytest.raises(ExportError, match="no readable engine"):
            BuiltEngine.load(folder)

    def test_a_record_without_its_file_is_refused(self, int8_engine: BuiltEngine, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(int8_engine.folder, tmp_path / "copy"))
        (folder / int8_engine.file).unlink()
        with pytest.raises(ExportError, match="is missing"):
            BuiltEngine.load(folder)


def without_a_quantizer(artifact: Artifact) -> Artifact:
    """The same artifact with the image, which the first convolution reads, left in float."""
    assert artifact.quantization is not None
    activations = {name: grid for name, grid in artifact.quantization.activations.items() if name != "input:0"}
    quantization = artifact.quantization.model_copy(update={"activations": activations})
    return Artifact(model=artifact.model, blueprint=artifact.blueprint, quantization=quantization)


def test_an_engine_with_too_little_in_int8_is_not_accepted(
    int8_artifact: Artifact, data: Dataset, metadata: OnnxMetadata, tmp_path: Path
) -> None:
    target = OnnxRuntimeTarget(precision=("int8",), min_int8_share=1.0)
    with pytest.raises(
        AuditError, match=r"train, onnxruntime cpu int8: 9\d\.\d% .*\n  conv1 \(Conv, .*: its input is not"
    ):
        build_engine(without_a_quantizer(int8_artifact), target, "int8", tmp_path, data, metadata=metadata)
    assert not (tmp_path / "engine.json").exists()


def test_a_rehearsal_leaves_nothing_behind(
    float_artifact: Artifact, target: OnnxRuntimeTarget, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rehearse_engine(float_artifact, target, "fp32", data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["float", "int8"])
def test_a_measurement_holds_the_accuracy_of_the_engine_over_the_whole_test_split(
    which: str, request: pytest.FixtureRequest, float_engine: BuiltEngine, target: OnnxRuntimeTarget, data: Dataset
) -> None:
    engine: BuiltEngine = request.getfixturevalue(f"{which}_engine")
    artifact: Artifact = request.getfixturevalue(f"{which}_artifact")
    found = measure_engine(engine, float_engine, target, data, Classification(), file="01-train/x/model.onnx")
    measured = found.engine
    (comparison,) = measured.latency
    assert isinstance(measured.score, Accuracy)
    assert measured.score.count == len(found.values) == len(data.test)
    assert measured.file_bytes == engine.path.stat().st_size
    assert comparison.candidate.samples >= 10
    assert comparison.interval.low <= comparison.ratio <= comparison.interval.high
    assert measured.energy is not None  # measured, or the reason why not
    assert (measured.device_latency, measured.device_states) == ((), None)  # on the CPU
    assert isinstance(measured.operators, tuple)
    assert {"conv1", "linear"} <= {operator.layer for operator in measured.operators}
    assert type(measured).model_validate_json(measured.model_dump_json()) == measured
    inputs = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        outputs = artifact.executable(data.example())(*inputs.inputs.values())
    # One int8 prediction in a hundred may hang on a rounding.
    assert abs(measured.score.correct - int(Classification().values(outputs, inputs.target).sum())) <= (which == "int8")


class Silent(OnnxRuntimeTarget):
    """A runtime that has no profile."""

    def operator_times(self, file: Path, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """Refused, as a runtime refuses it."""
        raise ExportError("it has no profile")


def test_a_runtime_without_a_profile_is_measured_all_the_same(float_engine: BuiltEngine, data: Dataset) -> None:
    found = measure_engine(float_engine, float_engine, Silent(), data, Classification(), file="model.onnx").engine
    assert found.operators == NotMeasured(reason="it has no profile")
    assert type(found).model_validate_json(found.model_dump_json()) == found
