"""Facts about what ``--fail-if`` makes of numbers."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.export.measurement import Latency
from potstill.pipeline.comparison.asked import Judgement
from potstill.pipeline.comparison.request import compared_as_asked
from potstill.pipeline.errors import UsageError
from potstill.pipeline.report import Report


def saved(folder: Path, name: str, report: Report) -> Path:
    file = folder / f"{name}.json"
    file.write_text(report.model_dump_json())
    return file


def with_final(samples: ModuleType, **changes: Any) -> Report:
    return samples.sample_report([*samples.SKETCHES[:-1], replace(samples.SKETCHES[-1], **changes)])


def judged(report: Report, folder: Path, *conditions: str) -> tuple[Judgement, ...]:
    return compared_as_asked([saved(folder, "run", report)], fail_if=conditions).judgements


class TestNumbers:
    @pytest.mark.parametrize(
        ("holds", "fails_not", "words"),
        [
            ("p50_ms>0.2", "p50_ms>0.3", "p50 is 0.2558 ms at batch 1 (0.2527 to 0.2589)"),
            ("p90_ms>0.2", "p90_ms>0.3", "p90 is 0.2763 ms at batch 1"),
            ("p99_ms>=0.3", "p99_ms>0.4", "p99 is 0.3351 ms at batch 1"),
            ("accuracy<0.99", "accuracy<0.98", "accuracy is 0.9805 (0.9603 to 0.9905)"),
            ("file_bytes>62709", "file_bytes>62710", "its file has 62,710 bytes"),
            ("peak_memory_bytes>1e6", "peak_memory_bytes>1e9", "its peak memory is 84,341,710 bytes"),
            ("throughput<4000", "throughput<3000", "throughput is 3,795.6 samples/s at batch 1"),
            ("speedup<12", "speedup<11", "11.62x its teacher's speed at batch 1 (11.45 to 11.81)"),
            ("parameters>41709", "parameters>41710", "it has 41,710 parameters"),
            ("macs<=9870000", "macs<9870000", "it takes 9,870,000 multiply-accumulates a sample"),
        ],
    )
    def test_fail_where_the_condition_is_true(
        self, holds: str, fails_not: str, words: str, samples: ModuleType, tmp_path: Path
    ) -> None:
        failed, passed = judged(samples.sample_report(), tmp_path, holds, fails_not)
        assert (failed.failed, passed.failed) == (True, False)
        assert failed.sentence == f"{holds} FAILED: A digits, onnxruntime cpu int8: {words}"
        assert passed.sentence == f"{fails_not} passed: A digits, onnxruntime cpu int8: {words}"

    def test_what_was_not_measured_fails_and_says_so(self, samples: ModuleType, tmp_path: Path) -> None:
        report = samples.sample_report()
        last = report.steps[-1]
        timing = last.timing.model_copy(update={"candidate": few(last.timing.candidate)})
        engine = last.engine.model_copy(update={"latency": (timing,), "peak_memory_bytes": None})
        report = report.model_copy(update={"steps": (*report.steps[:-1], last.model_copy(update={"engine": engine}))})
        p99, memory = judged(report, tmp_path, "p99_ms>2", "peak_memory_bytes>1e9")
        assert (p99.failed, p99.value) == (True, None)
        assert "p99 was not measured: 420 samples are too few" in p99.sentence
        assert memory.failed
        assert "its peak memory was not measured" in memory.sentence

    def test_every_profiled_file_is_judged_by_what_a_profile_knows(self, samples: ModuleType, tmp_path: Path) -> None:
        file = tmp_path / "profile.json"
        file.write_text(samples.profile_text(["one.onnx", "two.onnx"], p50_ms=0.3))
        found = compared_as_asked([file], fail_if=["p50_ms>0.5", "speedup<1"]).judgements
        assert [(each.engine, each.failed) for each in found] == [
            ("A1", False), ("A1", True), ("A2", True), ("A2", True),
        ]  # fmt: skip
        assert "the speedup was not measured: a profile has no teacher" in found[1].sentence


def few(latency: Latency) -> Latency:
    return latency.model_copy(update={"samples": 420, "p99_ms": None})


class TestRegression:
    def told(self, after: Report, before: Report, folder: Path, condition: str = "regression>5%") -> Judgement:
        paths = [saved(folder, "after", after)]
        (found,) = compared_as_asked(paths, baseline=saved(folder, "before", before), fail_if=[condition]).judgements
        return found

    def test_fails_where_the_p50_is_larger_beyond_noise_and_limit(self, samples: ModuleType, tmp_path: Path) -> None:
        slower = with_final(samples, speedup=10.0)
        found = self.told(slower, samples.sample_report(), tmp_path)
        assert found.failed
        assert found.value == pytest.approx(0.162)
        assert found.engine == "B6"  # the baseline comes first
        assert "p50 went from 0.2558 to 0.2972 ms at batch 1 against A digits (+16.2 %, beyond noise)" in found.sentence
        assert not self.told(slower, samples.sample_report(), tmp_path, "regression>20%").failed

    def test_passes_where_the_difference_may_be_chance(self, samples: ModuleType, tmp_path: Path) -> None:
        found = self.told(with_final(samples, speedup=11.5), samples.sample_report(), tmp_path, "regression>0%")
        assert not found.failed
        assert found.value == pytest.approx(0.0104, rel=0.01)
        assert "(+1.0 %, within noise)" in found.sentence

    def test_on_a_machine_that_drifted_by_more_than_the_limit_it_cannot_be_judged(
        self, samples: ModuleType, tmp_path: Path
    ) -> None:
        report = with_final(samples, speedup=10.0)
        first = report.steps[0]
        slow = first.timing.baseline.model_copy(update={"p50_ms": 1.3 * first.timing.baseline.p50_ms})
        timing = first.timing.model_copy(update={"baseline": slow})
        step = first.model_copy(update={"engine": first.engine.model_copy(update={"latency": (timing,)})})
        drifted = report.model_copy(update={"steps": (step, *report.steps[1:])})
        found = self.told(drifted, samples.sample_report(), tmp_path)
        assert (found.failed, found.value) == (True, None)
        assert "(+16.2 %), which cannot be judged: the machine drifted by 29.5 % while it measured" in found.sentence
        assert not self.told(drifted, samples.sample_report(), tmp_path, "regression>20%").failed

    def test_passes_where_it_is_faster(self, samples: ModuleType, tmp_path: Path) -> None:
        found = self.told(with_final(samples, speedup=15.0), samples.sample_report(), tmp_path)
        assert not found.failed
        assert "(-22.5 %, beyond noise)" in found.sentence

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"threads": 2}, "different threads, 2 and 1"),
            ({"on": "Another Processor"}, "different machines"),
        ],
    )
    def test_what_cannot_be_judged_fails_with_the_reason(
        self, changes: dict[str, Any], reason: str, samples: ModuleType, tmp_path: Path
    ) -> None:
        if "on" in changes:
            changes = {"on": samples.machine(changes["on"])}
        found = self.told(samples.sample_report(), samples.sample_report(**changes), tmp_path)
        assert (found.failed, found.value) == (True, None)
        assert f"cannot be judged against A digits: {reason}" in found.sentence

    def test_the_second_of_two_runs_is_the_baseline(self, samples: ModuleType, tmp_path: Path) -> None:
        paths = [
            saved(tmp_path, "after", with_final(samples, speedup=10.0)),
            saved(tmp_path, "before", samples.sample_report()),
        ]
        (found,) = compared_as_asked(paths, fail_if=["regression>5%"]).judgements
        assert (found.failed, found.engine) == (True, "A6")

    @pytest.mark.parametrize("count", [1, 3])
    def test_without_a_baseline_it_cannot_be_asked(self, count: int, samples: ModuleType, tmp_path: Path) -> None:
        path = saved(tmp_path, "run", samples.sample_report())
        with pytest.raises(UsageError, match="a regression is told from a baseline; name it with --baseline"):
            compared_as_asked([path] * count, fail_if=["regression>5%"])

    def test_profiled_files_are_told_from_those_of_their_name(self, samples: ModuleType, tmp_path: Path) -> None:
        before, after = tmp_path / "before.json", tmp_path / "after.json"
        before.write_text(samples.profile_text(["one.onnx", "two.onnx"], p50_ms=0.3))
        after.write_text(samples.profile_text(["two.onnx", "new.onnx"], p50_ms=0.6))
        found = compared_as_asked([after], baseline=before, fail_if=["regression>5%"]).judgements
        assert [each.failed for each in found] == [False, True]
        assert "p50 went from 0.6 to 0.6 ms" in found[0].sentence
        assert "the baseline has no engine of that name and target" in found[1].sentence

    def test_a_profile_of_one_file_is_told_from_a_run(self, samples: ModuleType, tmp_path: Path) -> None:
        file = tmp_path / "profile.json"
        file.write_text(samples.profile_text(p50_ms=0.3))
        before = saved(tmp_path, "before", samples.sample_report())
        (found,) = compared_as_asked([file], baseline=before, fail_if=["regression>5%"]).judgements
        assert (found.failed, found.value) == (True, pytest.approx(0.173, abs=0.001))
