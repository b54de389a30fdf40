"""Facts about running engines, here and in processes of their own."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from potstill.export.deliver import BuiltEngine
from potstill.export.engine_process import EngineProcess
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import ExportError


class TestEngine:
    def test_it_runs_on_the_provider_it_was_asked_for(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget
    ) -> None:
        with target.open(float_engine.path) as engine:
            description = engine.describe()
        assert description.provider == "CPUExecutionProvider"
        assert description.inputs == {"image": (None, 1, 16, 16)}
        assert description.input_types == {"image": "float32"}
        assert description.outputs == {"logits": (None, 4)}
        # Batch norms are folded and ReLUs fused: nothing of either is left to run.
        assert not {"BatchNormalization", "Relu"} & set(description.operators)

    def test_each_timed_run_has_its_duration(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget, data: Dataset
    ) -> None:
        with target.open(float_engine.path) as engine:
            engine.bind(numpy_inputs(data.example(3)))
            seconds = engine.timed(5)
        assert seconds.shape == (5,)
        assert (seconds > 0).all()

    def test_a_damaged_file_is_said_to_be_damaged_once(
        self, garbage: Path, target: OnnxRuntimeTarget, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(ExportError, match=r"model\.onnx is damaged[\s\S]*Mend"), target.open(garbage):
            pass
        assert capfd.readouterr() == ("", "")

    def test_a_truncated_file_is_refused(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget, tmp_path: Path
    ) -> None:
        file = tmp_path / "model.onnx"
        file.write_bytes(float_engine.path.read_bytes()[:-1000])
        with pytest.raises(ExportError, match="is damaged"), target.open(file):
            pass

    def test_a_missing_file_is_said_to_be_missing(self, target: OnnxRuntimeTarget, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="there is no engine file"), target.open(tmp_path / "model.onnx"):
            pass

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"picture": np.zeros((1, 1, 16, 16), np.float32)}, "takes the inputs image; given were picture"),
            (
                {"image": np.zeros((1, 3, 16, 16), np.float32)},
                r"takes float32 \(any, 1, 16, 16\); given was .*1, 3, 16, 16",
            ),
            ({"image": np.zeros((1, 256), np.float32)}, r"given was float32 \(1, 256\)"),
            ({"image": np.zeros((1, 1, 16, 16), np.float64)}, "given was float64"),
        ],
    )
    def test_inputs_that_do_not_fit_are_named(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget, inputs: dict[str, np.ndarray], message: str
    ) -> None:
        with target.open(float_engine.path) as engine, pytest.raises(ExportError, match=message):
            engine.run(inputs)


class TestEngineProcess:
    def test_it_times_the_engine_and_holds_no_torch(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget, data: Dataset
    ) -> None:
        with EngineProcess(target, float_engine.path) as process:
            process.bind(numpy_inputs(data.example(1)))
            assert process.warm_up(0.01) > 0
            assert process.timed(7).shape == (7,)
            peak = process.peak_memory_bytes()
            if sys.platform == "linux":
                assert "libtorch" not in Path(f"/proc/{process.process_id}/maps").read_text()
                assert peak is not None
                assert 10e6 < peak < 400e6

    def test_a_killed_process_is_reported(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget, data: Dataset
    ) -> None:
        with EngineProcess(target, float_engine.path) as process:
            process.bind(numpy_inputs(data.example(1)))
            os.kill(process.process_id, signal.SIGKILL)
            with pytest.raises(ExportError, match=r"ended with signal 9"):
                process.timed(1)

    def test_a_crashed_process_is_reported_with_its_last_words(
        self, float_engine: BuiltEngine, target: OnnxRuntimeTarget
    ) -> None:
        with EngineProcess(target, float_engine.path) as process, pytest.raises(ExportError, match=r"AssertionError"):
            process.timed(1)  # nothing was bound

    def test_an_error_that_is_known_arrives_as_it_is(self, garbage: Path, target: OnnxRuntimeTarget) -> None:
        with pytest.raises(ExportError, match=r"model\.onnx is damaged"), EngineProcess(target, garbage):
            pass

    def test_no_process_outlives_its_block(self, float_engine: BuiltEngine, target: OnnxRuntimeTarget) -> None:
        with EngineProcess(target, float_engine.path) as process:
            number = process.process_id
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
