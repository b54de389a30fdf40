"""Facts about the report in a terminal."""

import io
from types import ModuleType

import pytest

from potstill.pipeline.views.fact_tables import fact_tables
from potstill.pipeline.views.terminal import print_report


@pytest.fixture
def printed(samples: ModuleType) -> str:
    stream = io.StringIO()
    print_report(samples.sample_report(), stream)
    return stream.getvalue()


class TestPrintReport:
    def test_says_headline_steps_audit_and_goals(self, printed: str) -> None:
        assert "11.6× faster than the teacher's fp32 engine at batch 1, 0.56 points less accurate" in printed
        assert "7 of 8 layers run in int8" in printed
        assert "float: /linear/Gemm (Gemm, 640 MACs): its output is read as float" in printed
        assert "✗ min_speedup MISSED" in printed

    def test_no_name_or_number_is_cut_or_broken(self, printed: str, samples: ModuleType) -> None:
        assert "…" not in printed
        for sketch in samples.SKETCHES:
            assert sketch.name in printed
            assert f"{sketch.speedup:.2f}×" in printed

    def test_each_loss_of_several_terms_has_a_line(self, printed: str) -> None:
        text = " ".join(printed.split())
        assert "06-quantize: terms of the loss at the end (mean share of the gradient): cross_entropy 1.02 (" in text
        assert "04-factorize: terms of the loss at the end: cross_entropy 1.02, kd 0.413" in text
        assert "01-train: terms" not in text

    def test_writes_no_escape_codes_into_a_file(self, printed: str) -> None:
        assert "\x1b" not in printed

    def test_brackets_in_names_are_no_markup(self, samples: ModuleType) -> None:
        stream = io.StringIO()
        print_report(samples.sample_report(name="[bold]x[/nonsense]"), stream)
        assert "[bold]x[/nonsense]:" in stream.getvalue()

    def test_a_run_that_stopped_at_the_teacher_is_told(self, samples: ModuleType) -> None:
        stream = io.StringIO()
        print_report(samples.sample_report(samples.SKETCHES[:1]), stream)
        assert "Only the teacher was made so far" in stream.getvalue()


class TestFactTables:
    def test_a_list_of_like_things_becomes_a_table_with_aligned_figures(self) -> None:
        rows = [{"path": "a", "energy": 0.5, "macs_after": 12000}, {"path": "b", "energy": 0.955, "extra": None}]
        (table,) = fact_tables({"layers": rows})
        assert [column.title for column in table.columns] == ["Path", "Energy", "Macs after", "Extra"]
        assert [column.numeric for column in table.columns] == [False, True, True, False]
        assert [[cell.text for cell in row] for row in table.rows] == [
            ["a", "0.500", "12,000", "–"],
            ["b", "0.955", "–", "–"],
        ]

    def test_everything_else_is_told_in_one_line(self) -> None:
        (table,) = fact_tables({"a_b": {"x": [1, 2.5]}, "on": True, "none": [], "text": "7 (why)"})
        assert [tuple(cell.text for cell in row) for row in table.rows] == [
            ("a b", "x 1, 2.5"),
            ("on", "yes"),
            ("none", "none"),
            ("text", "7 (why)"),
        ]

    def test_what_a_name_says_of_the_unit_is_shown(self) -> None:
        facts = {"teacher cache": {"asked": 1437, "computed": 1, "hit rate": 0.9993, "bytes": 5_748_000}, "bytes": 12}
        (table,) = fact_tables(facts)
        assert [tuple(cell.text for cell in row) for row in table.rows] == [
            ("teacher cache", "asked 1,437, computed 1, hit rate 99.93 %, 5.75 MB"),
            ("bytes", "12 bytes"),
        ]

    def test_a_tiny_weight_is_never_called_zero_and_no_cell_is_blank(self) -> None:
        (table,) = fact_tables({"knowledge": [{"weight": 2e-5, "taps": ""}, {"weight": 1000, "taps": "a→b"}]})
        assert [[cell.text for cell in row] for row in table.rows] == [["2e-05", "–"], ["1,000", "a→b"]]
