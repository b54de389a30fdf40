"""Facts about how a run with several targets is told."""

import io
from types import ModuleType

import pytest

from potstill.export.measurement import Interval, Ranked
from potstill.pipeline.report import Report
from potstill.pipeline.views import device_tables, ranking, report_tables
from potstill.pipeline.views.html import report_html
from potstill.pipeline.views.markdown import report_markdown
from potstill.pipeline.views.terminal import print_report


@pytest.fixture
def report(samples: ModuleType) -> Report:
    """With four final engines, one of them on a GPU that was held back."""
    return samples.with_several_targets(samples.sample_report())


def views(report: Report) -> list[str]:
    """Page, Markdown and terminal, each on one line."""
    stream = io.StringIO()
    print_report(report, stream)
    return [" ".join(text.split()) for text in (report_html(report), report_markdown(report), stream.getvalue())]


def level_with_the_fastest(report: Report) -> Report:
    """The same with a second engine that may be as fast as the first."""
    first, second, *others = report.ranking
    comparison = second.comparison.model_copy(
        update={"ratio": 0.99, "interval": Interval(low=0.97, high=1.01), "verdict": "no significant difference"}
    )
    near = Ranked(target=second.target, comparison=comparison)
    return report.model_copy(update={"ranking": (first, near, *others)})


class TestRankingSentence:
    def test_names_the_fastest_and_how_far_it_leads_beyond_noise(self, report: Report) -> None:
        assert ranking.ranking_sentence(report) == (
            "Fastest of the final student's 4 engines: openvino cpu int8, p50 0.245 ms at batch 1, 1.04× (1.02 to 1.07)"
            " faster than onnxruntime cpu int8, beyond noise."
        )

    def test_says_which_engines_may_be_as_fast(self, report: Report) -> None:
        assert ranking.ranking_sentence(level_with_the_fastest(report)).endswith(
            "p50 0.245 ms at batch 1; its lead over onnxruntime cpu int8 is within noise."
        )

    def test_stands_in_the_first_lines_of_every_view(self, report: Report) -> None:
        for text in views(report):
            said, first_table = text.index("Fastest of the final student"), text.index("Every step's engine")
            assert said < first_table
            assert said < text.index("file 69.5× smaller") + 200

    def test_is_left_out_where_there_is_one_engine(self, samples: ModuleType) -> None:
        single = samples.sample_report()
        assert (ranking.ranking_sentence(single), ranking.ranking_table(single)) == ("", None)
        assert all("Fastest of" not in text and "Runtimes ranked" not in text for text in views(single))


class TestRankingTable:
    def test_has_the_fastest_first_with_ratio_verdict_memory_and_energy(self, report: Report) -> None:
        table = ranking.ranking_table(level_with_the_fastest(report))
        assert table is not None
        titles = [column.title for column in table.columns]
        rows = {row[0].text: dict(zip(titles, row, strict=True)) for row in table.rows}
        assert list(rows) == [
            "openvino cpu int8", "onnxruntime cpu int8", "inductor cuda fp16", "onnxruntime cpu fp32",
        ]  # fmt: skip
        assert [row["Verdict"].text for row in rows.values()] == ["fastest", "within noise", "slower", "slower"]
        gpu = rows["inductor cuda fp16"]
        assert (gpu["Time"].text, gpu["Time"].detail) == ("1.68×", "1.64 to 1.72")
        assert gpu["Peak memory"].detail == "and 611.0 on the GPU"
        assert (gpu["Energy"].text, gpu["Energy"].detail) == ("31.7", "GPU, NVML, 70.1 W idle, 139.0 W busy")
        quiet = rows["onnxruntime cpu int8"]["Energy"]
        assert (quiet.text, quiet.detail) == ("not measured", "RAPL cannot be read here")

    def test_stands_in_every_view(self, report: Report) -> None:
        assert all("Runtimes ranked" in text for text in views(report))


class TestDevice:
    def test_a_throttled_gpu_is_a_warning_in_the_first_lines_of_every_view(self, report: Report) -> None:
        for text in views(report):
            warning = text.index("the GPU held its clock back, after the timing by power cap and heat")
            assert warning < text.index("Every step's engine")

    def test_a_gpu_at_its_own_pace_is_none(self, samples: ModuleType) -> None:
        steady = samples.with_several_targets(samples.sample_report(), throttled=False)
        assert device_tables.throttling_sentences(steady) == ()
        assert all("held its clock back" not in text for text in views(steady))

    def test_a_step_whose_gpu_was_held_back_is_told_once(self, report: Report) -> None:
        gpu = report.engines[3]
        last = report.steps[-1].model_copy(update={"engine": gpu})
        again = report.model_copy(update={"steps": (*report.steps[:-1], last)})
        assert len(device_tables.throttling_sentences(again)) == 1

    def test_latency_by_both_clocks_stands_side_by_side(self, report: Report) -> None:
        table = device_tables.device_latency_table(report)
        assert table is not None
        titles = [column.title for column in table.columns]
        first, second = (dict(zip(titles, row, strict=True)) for row in table.rows)
        assert (first["Host p50"].text, first["Device p50"].text) == ("0.4104", "0.0930")
        assert first["Beside the device"].text == "0.3174"
        assert second["Device p99"].text == "not measured"

    def test_its_state_is_told_before_and_after_and_nothing_made_up(self, report: Report) -> None:
        table = device_tables.device_state_table(report)
        assert table is not None
        before, after = ([cell.text for cell in row] for row in table.rows)
        assert before == ["inductor cuda fp16", "before", "1,980", "2,619", "41", "118.4", "nothing"]
        assert after == ["inductor cuda fp16", "after", "1,410", "2,619", "79", "not told", "power cap, heat"]

    def test_without_a_gpu_there_is_no_table(self, samples: ModuleType) -> None:
        single = samples.sample_report()
        assert (device_tables.device_latency_table(single), device_tables.device_state_table(single)) == (None, None)


class TestBusyMachine:
    def test_others_that_want_the_processor_are_a_warning_in_the_first_lines(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        busy = report.machine.model_copy(update={"threads": 2, "load": (1.0, 16.8, 2.0)})
        for text in views(report.model_copy(update={"machine": busy})):
            warning = text.index("16.8 processes on average wanted its 2 threads")
            assert warning < text.index("Every step&#39;s engine" if "<html" in text else "Every step's engine")

    @pytest.mark.parametrize("load", [None, (9.0, 2.9, 5.0)])
    def test_what_the_run_itself_may_cause_is_none(
        self, samples: ModuleType, load: tuple[float, float, float] | None
    ) -> None:
        machine = samples.sample_report().machine.model_copy(update={"threads": 2, "load": load})
        assert report_tables.busy_sentences(machine) == ()


class TestGoals:
    def test_with_several_targets_it_is_said_which_engine_they_are_about(self, report: Report) -> None:
        for text in views(report):
            assert "Goals are judged by onnxruntime cpu int8, the engine for the first target." in text

    def test_with_one_target_in_two_precisions_nothing_needs_saying(self, samples: ModuleType) -> None:
        assert report_tables.judged_sentence(samples.sample_report()) == ""
