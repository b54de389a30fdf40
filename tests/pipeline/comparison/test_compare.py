"""Facts about setting runs and profiles side by side."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.pipeline.comparison.compare import Compared, compare
from potstill.pipeline.comparison.profile_file import ProfileFile
from potstill.pipeline.errors import UsageError
from potstill.pipeline.report import Report
from potstill.pipeline.views import compare_tables


def pair(first: Report, second: Report) -> Compared:
    return compare([(Path("runs/a"), first), (Path("runs/b"), second)])


def with_profile(samples: ModuleType, folder: Path, **changes: Any) -> Compared:
    """A run beside a profile of two files, the second one half as fast as the first."""
    file = folder / "profile.json"
    file.write_text(samples.profile_text(["one.onnx", "two.onnx"], **changes))
    profile = ProfileFile.load(file)
    assert profile is not None
    return compare([(Path("runs/a"), samples.sample_report()), (file, profile)])


def with_final(samples: ModuleType, **changes: Any) -> list[Any]:
    return [*samples.SKETCHES[:-1], replace(samples.SKETCHES[-1], **changes)]


class TestVerdicts:
    def test_two_runs_of_the_same_numbers_are_within_noise(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report())
        (against,) = comparison.against_first
        assert against.verdict == "no significant difference"
        assert against.score is not None
        assert not against.score.significant
        (sentence,) = compare_tables.verdict_sentences(comparison)
        assert "latency within noise; accuracy within noise (0.00 points); files of the same size" in sentence

    def test_a_clearly_faster_engine_is_faster(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(with_final(samples, speedup=15.0)))
        (against,) = comparison.against_first
        assert against.verdict == "faster"
        assert against.speedup is not None
        assert against.speedup.ratio == pytest.approx(15 / 11.62)
        assert "1.29× faster" in compare_tables.verdict_sentences(comparison)[0]

    def test_a_clearly_worse_engine_is_slower_and_less_accurate(self, samples: ModuleType) -> None:
        worse = samples.sample_report(with_final(samples, speedup=5.0, correct=320, parameters=400_000))
        comparison = pair(samples.sample_report(), worse)
        (sentence,) = compare_tables.verdict_sentences(comparison)
        assert "2.32× slower; accuracy −8.91 points; file 6.71× larger" in sentence

    def test_a_machine_that_drifted_within_a_run_raises_the_floor(self, samples: ModuleType) -> None:
        steady = pair(samples.sample_report(), samples.sample_report(with_final(samples, speedup=12.9)))
        assert steady.against_first[0].verdict == "faster"
        report = samples.sample_report(with_final(samples, speedup=12.9))
        first = report.steps[0]
        slow = first.timing.baseline.model_copy(update={"p50_ms": 1.2 * first.timing.baseline.p50_ms})
        timing = first.timing.model_copy(update={"baseline": slow})
        engine = first.engine.model_copy(update={"latency": (timing,)})
        steps = (first.model_copy(update={"engine": engine}), *report.steps[1:])
        drifted = pair(samples.sample_report(), report.model_copy(update={"steps": steps}))
        assert drifted.drift == pytest.approx(0.2, rel=0.05)
        assert drifted.against_first[0].verdict == "no significant difference"

    def test_latencies_of_different_machines_are_not_compared(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(on=samples.machine("Another Processor")))
        (against,) = comparison.against_first
        assert against.speedup is None
        assert against.verdict == "different machines"
        assert against.score is not None

    def test_another_version_of_a_library_is_the_same_machine_and_is_told(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(on=samples.machine(onnxruntime="1.31.0")))
        assert comparison.same_machine
        assert comparison.machine_differences() == (("onnxruntime", ("1.32.0", "1.31.0")),)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [({"data": "other digits"}, "different data"), ({"count": 400}, "different number of test samples")],
    )
    def test_accuracies_on_different_samples_are_not_compared(
        self, changes: dict[str, Any], reason: str, samples: ModuleType
    ) -> None:
        (against,) = pair(samples.sample_report(), samples.sample_report(**changes)).against_first
        assert (against.score, against.score_reason) == (None, reason)

    def test_engines_with_different_threads_are_not_compared(self, samples: ModuleType) -> None:
        (against,) = pair(samples.sample_report(), samples.sample_report(threads=2)).against_first
        assert against.verdict == "different threads, 1 and 2"

    def test_engines_without_a_batch_size_in_common_are_not_compared(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        last = report.steps[-1]
        engine = last.engine.model_copy(update={"latency": (samples.timing(8, 3.0, 2.0),)})
        other = report.model_copy(update={"steps": (*report.steps[:-1], last.model_copy(update={"engine": engine}))})
        assert pair(report, other).against_first[0].verdict == "no batch size in common"


class TestProfiles:
    def test_each_profiled_file_stands_beside_the_final_engine_of_a_run(
        self, samples: ModuleType, tmp_path: Path
    ) -> None:
        comparison = with_profile(samples, tmp_path, p50_ms=2 * samples.TEACHER_P50_MS / 11.62)
        assert [engine.mark for engine in comparison.main] == ["A6", "B1", "B2"]
        once, twice = comparison.against_first
        assert (once.verdict, twice.verdict) == ("slower", "slower")
        assert once.speedup is not None
        assert once.speedup.ratio == pytest.approx(1 / 2, rel=0.03)
        assert (once.score, once.score_reason, once.file_ratio) == (None, "a profile runs no test samples", None)

    def test_files_of_one_profile_are_told_by_their_turns(self, samples: ModuleType, tmp_path: Path) -> None:
        file = tmp_path / "profile.json"
        file.write_text(samples.profile_text(["one.onnx", "two.onnx"], beside=[1.0, 0.8]))
        profile = ProfileFile.load(file)
        assert profile is not None
        (alone,) = compare([(file, profile)], least=1).against_first
        assert alone.speedup is not None
        assert alone.speedup.ratio == 0.8  # the medians' quotient is a half
        beside_run = compare([(Path("runs/a"), samples.sample_report()), (file, profile)]).against_first
        assert [each.speedup and each.speedup.ratio < 0.9 for each in beside_run] == [True, True]

    def test_profiles_of_another_machine_are_not_compared(self, samples: ModuleType, tmp_path: Path) -> None:
        comparison = with_profile(samples, tmp_path, on=samples.machine("Another Processor"))
        assert [each.verdict for each in comparison.against_first] == ["different machines"] * 2
        assert [comparison.machine_number(engine.machine) for engine in comparison.main] == [1, 2, 2]


class TestEngines:
    def test_final_engines_of_further_targets_follow_the_steps_under_small_letters(self, samples: ModuleType) -> None:
        report = samples.with_several_targets(samples.sample_report())
        comparison = compare([(Path("a"), report)], least=1)
        assert [engine.mark for engine in comparison.engines] == [
            "A1", "A2", "A3", "A4", "A5", "A6", "A6b", "A6c", "A6d",
        ]  # fmt: skip
        final = [engine.target for engine in comparison.engines if engine.is_final]
        assert final == ["onnxruntime cpu int8", "onnxruntime cpu fp32", "openvino cpu int8", "inductor cuda fp16"]


class TestSettings:
    def test_only_settings_that_differ_are_told_by_the_names_of_their_stages(self, samples: ModuleType) -> None:
        recipe = samples.RECIPE.replace("epochs: 10", "epochs: 20").replace("- stage: quantize\n", "")
        comparison = pair(samples.sample_report(), samples.sample_report(recipe=recipe))
        assert comparison.different_settings() == (
            ("stages.distill.epochs", ("10", "20")),
            ("stages.quantize.stage", ("quantize", "–")),
        )


class TestCompare:
    @pytest.mark.parametrize("count", [0, 1, 27])
    def test_takes_at_least_two_runs_and_as_many_as_there_are_letters(self, count: int, samples: ModuleType) -> None:
        with pytest.raises(UsageError, match=f"2 to 26 runs or profiles, got {count}"):
            compare([(Path("run"), samples.sample_report())] * count)

    def test_a_recipe_that_is_no_yaml_is_refused(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(recipe="a: ["))
        with pytest.raises(UsageError, match="runs/b: the recipe in its report is not YAML"):
            comparison.different_settings()
