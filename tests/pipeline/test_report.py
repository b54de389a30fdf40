"""Facts about report.json and what is derived from it."""

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.pipeline.errors import UsageError
from potstill.pipeline.report import VERSION, Report
from potstill.pipeline.views.files import report_files
from potstill.pipeline.views.terminal import print_report


@pytest.fixture
def report(samples: ModuleType) -> Report:
    return samples.sample_report()


def changed(report: Report, **changes: Any) -> str:
    return json.dumps({**report.model_dump(mode="json"), **changes})


class TestLoad:
    def test_a_saved_report_comes_back_equal_from_its_folder_and_its_file(self, report: Report, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(report_files(report)["report.json"])
        assert Report.load(tmp_path) == report
        assert Report.load(tmp_path / "report.json") == report

    def test_a_newer_version_is_refused_with_both_versions(self, report: Report, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(changed(report, version=VERSION + 1, something_new=True))
        with pytest.raises(UsageError, match=rf"version {VERSION + 1}.*up to version {VERSION}.*update potstill"):
            Report.load(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ("{}", "has no version"),
            ("[1]", "has no version"),
            ('{"version": true}', "has no version"),
            ('{"version": 1}', "is no report of a run: name: Field required, and"),
        ],
    )
    def test_what_is_no_report_is_refused_with_the_reason(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(UsageError, match=message):
            Report.load(tmp_path)

    def test_a_folder_without_a_report_and_a_binary_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"report\.json: cannot be read \(No such file.*finished run"):
            Report.load(tmp_path)
        (tmp_path / "engine.onnx").write_bytes(b"\xff\xfe\x00\x80")
        with pytest.raises(UsageError, match="it is not text"):
            Report.load(tmp_path / "engine.onnx")

    def test_a_report_from_before_gradients_were_looked_at_still_loads(self, report: Report, tmp_path: Path) -> None:
        content = report.model_dump(mode="json")
        for step in content["steps"]:
            for point in step["curve"]:
                del point["gradient_shares"]
        (tmp_path / "report.json").write_text(json.dumps(content))
        loaded = Report.load(tmp_path)
        assert all(point.gradient_shares is None for step in loaded.steps for point in step.curve)
        assert set(report_files(loaded)) == set(report_files(report))

    def test_a_report_of_version_1_still_loads(self, report: Report, tmp_path: Path) -> None:
        content = report.model_dump(mode="json") | {"version": 1}
        for step in content["steps"]:
            step["engine"]["accuracy"] = step["engine"].pop("score")
            del step["change"], step["change_since_teacher"], step["gate"]
        for engine in content["engines"]:
            engine["accuracy"] = engine.pop("score")
        (tmp_path / "report.json").write_text(json.dumps(content))
        assert Report.load(tmp_path) == report

    def test_unknown_keys_and_a_run_without_steps_are_refused(self, report: Report, tmp_path: Path) -> None:
        for changes in ({"speed": 3}, {"steps": []}):
            (tmp_path / "report.json").write_text(changed(report, **changes))
            with pytest.raises(UsageError, match=next(iter(changes))):
                Report.load(tmp_path)


class TestRanking:
    def test_a_ranked_run_comes_back_equal(self, samples: ModuleType, report: Report, tmp_path: Path) -> None:
        several = samples.with_several_targets(report)
        (tmp_path / "report.json").write_text(report_files(several)["report.json"])
        assert Report.load(tmp_path) == several

    def test_of_an_engine_that_is_not_there_is_refused(
        self, samples: ModuleType, report: Report, tmp_path: Path
    ) -> None:
        content = samples.with_several_targets(report).model_dump(mode="json")
        content["ranking"][0]["target"] = "nowhere int8"
        (tmp_path / "report.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match="is no report of a run: Value error, ranks nowhere int8, of which"):
            Report.load(tmp_path)


class TestOfARegression:
    def test_comes_back_equal(self, samples: ModuleType, report: Report, tmp_path: Path) -> None:
        regression = samples.as_regression(report)
        (tmp_path / "report.json").write_text(report_files(regression)["report.json"])
        assert Report.load(tmp_path) == regression

    def test_is_compared_sample_by_sample_where_that_was_done(self, samples: ModuleType, report: Report) -> None:
        regression = samples.as_regression(report)
        paired = regression.steps[-1].change_since_teacher
        assert regression.headline.score == paired
        assert [row.score for row in regression.earned] == [step.change for step in regression.steps]

    def test_has_its_views_where_no_final_engine_was_built_yet(self, samples: ModuleType, report: Report) -> None:
        for each in (report, samples.as_regression(report)):
            assert set(report_files(each.model_copy(update={"engines": ()}))) == set(report_files(each))

    def test_no_view_calls_it_an_accuracy(self, samples: ModuleType, report: Report) -> None:
        regression = samples.as_regression(report)
        views = report_files(regression)
        stream = io.StringIO()
        print_report(regression, stream)
        for text in (views["report.html"], views["report.md"], stream.getvalue()):
            told = text.lower().replace("max_accuracy_drop", "")  # in the sample's recipe
            assert "accura" not in told
            assert "RMSE" in text
            assert "lower is better" in text


class TestDerived:
    def test_the_headline_spans_the_first_and_the_last_step(self, report: Report) -> None:
        headline = report.headline
        assert (headline.teacher.name, headline.final.name) == ("01-train", "06-quantize")
        assert headline.score.value == pytest.approx((352 - 354) / 359)
        assert headline.timing.ratio == 11.62
        assert headline.file_ratio == (4 * 1_084_554 + 21_000) / (41_710 + 21_000)

    def test_what_the_steps_earned_multiplies_and_adds_up_to_the_headline(self, report: Report) -> None:
        _, *rows = report.earned
        factors, points, sizes = 1.0, 0.0, 1.0
        for row in rows:
            assert row.speedup is not None
            assert row.score is not None
            assert row.file_ratio is not None
            factors, points, sizes = (
                factors * row.speedup.ratio,
                points + row.score.value,
                sizes * row.file_ratio,
            )
        assert factors == pytest.approx(report.headline.timing.ratio)
        assert points == pytest.approx(report.headline.score.value)
        assert sizes == pytest.approx(report.headline.file_ratio)

    def test_the_step_after_the_teacher_keeps_its_measured_interval(self, report: Report) -> None:
        speedup = report.earned[1].speedup
        assert speedup is not None
        assert speedup.interval == report.steps[1].timing.interval

    def test_the_teacher_earned_nothing(self, report: Report) -> None:
        first = report.earned[0]
        assert (first.score, first.speedup, first.file_ratio) == (None, None, None)

    def test_a_model_without_counted_operations_has_no_ratio(self, samples: ModuleType) -> None:
        bare = samples.Sketch("02-bare", 300, 2.0, 0, 0)
        headline = samples.sample_report([samples.SKETCHES[0], bare]).headline
        assert (headline.macs_ratio, headline.parameters_ratio) == (None, None)
