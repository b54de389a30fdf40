"""Facts about setting runs side by side."""

import io
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.export.measurement import Interval
from potstill.pipeline.errors import UsageError
from potstill.pipeline.report import Report
from potstill.pipeline.views import compare_tables
from potstill.pipeline.views.compare import RunComparison, compare
from potstill.pipeline.views.compare_views import comparison_html, comparison_markdown, print_comparison


def pair(first: Report, second: Report) -> RunComparison:
    return compare([(Path("runs/a"), first), (Path("runs/b"), second)])


def with_final(samples: ModuleType, **changes: Any) -> list[Any]:
    return [*samples.SKETCHES[:-1], replace(samples.SKETCHES[-1], **changes)]


class TestVerdicts:
    def test_two_runs_of_the_same_numbers_are_within_noise(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report())
        (against,) = comparison.against_first()
        assert against.verdict == "no significant difference"
        assert against.score is not None
        assert not against.score.significant
        (sentence,) = compare_tables.verdict_sentences(comparison)
        assert "latency within noise; accuracy within noise (0.00 points); files of the same size" in sentence

    def test_a_clearly_faster_engine_is_faster(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(with_final(samples, speedup=15.0)))
        (against,) = comparison.against_first()
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
        assert steady.against_first()[0].verdict == "faster"
        report = samples.sample_report(with_final(samples, speedup=12.9))
        first = report.steps[0]
        slow = first.timing.baseline.model_copy(update={"p50_ms": 1.2 * first.timing.baseline.p50_ms})
        timing = first.timing.model_copy(update={"baseline": slow})
        engine = first.engine.model_copy(update={"latency": (timing,)})
        steps = (first.model_copy(update={"engine": engine}), *report.steps[1:])
        drifted = pair(samples.sample_report(), report.model_copy(update={"steps": steps}))
        assert drifted.drift == pytest.approx(0.2, rel=0.05)
        assert drifted.against_first()[0].verdict == "no significant difference"

    def test_latencies_of_different_machines_are_not_compared(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(on=samples.machine("Another Processor")))
        (against,) = comparison.against_first()
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
        (against,) = pair(samples.sample_report(), samples.sample_report(**changes)).against_first()
        assert (against.score, against.score_reason) == (None, reason)

    def test_engines_with_different_threads_are_not_compared(self, samples: ModuleType) -> None:
        (against,) = pair(samples.sample_report(), samples.sample_report(threads=2)).against_first()
        assert against.verdict == "different threads, 1 and 2"

    def test_engines_without_a_batch_size_in_common_are_not_compared(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        last = report.steps[-1]
        engine = last.engine.model_copy(update={"latency": (samples.timing(8, 3.0, 2.0),)})
        other = report.model_copy(update={"steps": (*report.steps[:-1], last.model_copy(update={"engine": engine}))})
        assert pair(report, other).against_first()[0].verdict == "no batch size in common"


class TestSettings:
    def test_only_settings_that_differ_are_told_by_the_names_of_their_stages(self, samples: ModuleType) -> None:
        recipe = samples.RECIPE.replace("epochs: 10", "epochs: 20").replace("- stage: quantize\n", "")
        comparison = pair(samples.sample_report(), samples.sample_report(recipe=recipe))
        assert comparison.different_settings() == (
            ("stages.distill.epochs", ("10", "20")),
            ("stages.quantize.stage", ("quantize", "–")),
        )


class TestViews:
    def test_every_latency_names_its_machine_where_they_differ(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(on=samples.machine("Another Processor")))
        for table in (
            compare_tables.finals_table(comparison),
            compare_tables.steps_table(comparison),
            compare_tables.engines_table(comparison),
        ):
            titles = [column.title for column in table.columns]
            timed = [titles.index(title) for title in ("p50", "p99", "Speedup", "Throughput") if title in titles]
            assert timed
            assert all("; machine" in f"; {row[index].detail}" for row in table.rows for index in timed)
        assert "different machines" in comparison_html(comparison)
        assert "different machines" in comparison_markdown(comparison)

    def test_on_one_machine_no_number_is_marked(self, samples: ModuleType) -> None:
        page = comparison_html(pair(samples.sample_report(), samples.sample_report()))
        assert "machine 1" not in page

    def test_the_terminal_shows_verdicts_and_what_differs(self, samples: ModuleType) -> None:
        stream = io.StringIO()
        other = samples.sample_report(recipe=samples.RECIPE.replace("epochs: 10", "epochs: 20"), name="[red]longer")
        print_comparison(pair(samples.sample_report(), other), stream)
        text = stream.getvalue()
        assert "B [red]longer against A digits: latency within noise" in text
        assert "stages.distill.epochs" in text
        assert "Newcombe" in text

    def test_a_dozen_runs_fit_on_one_page(self, samples: ModuleType) -> None:
        runs = [(Path(f"runs/{n}"), samples.sample_report(name=f"run-{n}")) for n in range(12)]
        assert len(comparison_html(compare(runs)).encode()) < 1_000_000


class TestCompare:
    @pytest.mark.parametrize("count", [0, 1, 27])
    def test_takes_at_least_two_runs_and_as_many_as_there_are_letters(self, count: int, samples: ModuleType) -> None:
        with pytest.raises(UsageError, match=f"2 to 26 runs, got {count}"):
            compare([(Path("run"), samples.sample_report())] * count)

    def test_a_recipe_that_is_no_yaml_is_refused(self, samples: ModuleType) -> None:
        comparison = pair(samples.sample_report(), samples.sample_report(recipe="a: ["))
        with pytest.raises(UsageError, match="runs/b: the recipe in its report is not YAML"):
            comparison.different_settings()


class TestOtherMetrics:
    def test_runs_of_a_regression_are_compared_by_its_error(self, samples: ModuleType) -> None:
        regression = samples.as_regression(samples.sample_report())
        worse = regression.steps[-1].engine.score.model_copy(
            update={"value": 0.5, "interval": Interval(low=0.48, high=0.52)}
        )
        step = regression.steps[-1]
        changed = step.model_copy(update={"engine": step.engine.model_copy(update={"score": worse})})
        other = regression.model_copy(update={"steps": (*regression.steps[:-1], changed)})
        comparison = pair(regression, other)
        (against,) = comparison.against_first()
        assert against.score is not None
        assert (against.score.significant, against.score.improves) == (True, False)
        text = comparison_markdown(comparison)
        assert "RMSE +0.15000; files of the same size" in text
        assert "RMSE (lower is better)" in text
        assert "accura" not in text.lower().replace("max\\_accuracy\\_drop", "")

    def test_runs_of_different_metrics_are_not(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        comparison = pair(report, samples.as_regression(report))
        (against,) = comparison.against_first()
        assert (against.score, against.score_reason) == (None, "different metrics, accuracy and RMSE")
        text = comparison_markdown(comparison)
        assert "judged by different metrics" in text
        assert "| accuracy 98.05 % (" in text
        assert "| RMSE 0.3500 (0.3360 to 0.3675) |" in text
        page = comparison_html(comparison)
        assert "Not drawn: the runs are judged by different metrics." in page
