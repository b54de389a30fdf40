"""Facts about the values of a measurement."""

import pytest
from pydantic import ValidationError

from potstill.export.machine import machine_facts
from potstill.export.measurement import Accuracy
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.target import targets


class TestAccuracy:
    @pytest.mark.parametrize(
        ("correct", "count", "low", "high"),
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_the_interval_is_wilsons(self, correct: int, count: int, low: float, high: float) -> None:
        # The examples of Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        interval = Accuracy(correct=correct, count=count).interval
        assert interval.low == pytest.approx(low, abs=5e-5)
        assert interval.high == pytest.approx(high, abs=5e-5)

    def test_all_right_still_has_an_uncertain_side(self) -> None:
        interval = Accuracy(correct=360, count=360).interval
        assert 0.98 < interval.low < 1
        assert interval.high == 1

    def test_more_right_than_there_are_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            Accuracy(correct=3, count=2)


class TestMachine:
    def test_the_identity_leaves_out_the_load_alone(self) -> None:
        facts = machine_facts()
        assert set(facts.model_dump()) - set(facts.identity()) == {"load"}
        assert machine_facts().identity() == facts.identity()

    def test_versions_of_the_libraries_that_matter_are_recorded(self) -> None:
        assert {"torch", "onnx", "onnxruntime"} <= set(machine_facts().libraries)


class TestTarget:
    def test_onnx_runtime_is_found_by_its_name(self) -> None:
        assert targets()["onnxruntime"] is OnnxRuntimeTarget

    def test_targets_of_several_threads_have_folders_of_their_own(self) -> None:
        assert OnnxRuntimeTarget().slug == "onnxruntime-cpu"
        assert OnnxRuntimeTarget(threads=4).slug == "onnxruntime-cpu-4-threads"

    @pytest.mark.parametrize(
        "settings", [{"batch": []}, {"batch": [0]}, {"batch": [1, 1]}, {"precision": ["fp8"]}, {"threads": 0}]
    )
    def test_settings_that_mean_nothing_are_refused(self, settings: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            OnnxRuntimeTarget.model_validate(settings)

    def test_only_what_an_engine_depends_on_builds_it_anew(self) -> None:
        one, other = OnnxRuntimeTarget(batch=(1,)), OnnxRuntimeTarget(batch=(1, 32), threads=2)
        assert one.build_settings() == other.build_settings()
        assert one.measure_settings() != other.measure_settings()
