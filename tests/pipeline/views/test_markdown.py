"""Facts about report.md."""

import re
from types import ModuleType

from potstill.pipeline.views.markdown import report_markdown


def tables(text: str) -> list[list[str]]:
    """Each table's lines."""
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


class TestReportMarkdown:
    def test_every_row_of_a_table_has_as_many_cells_as_its_head(self, samples: ModuleType) -> None:
        found = tables(report_markdown(samples.sample_report()))
        assert len(found) >= 10
        for lines in found:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
            assert len(lines) >= 3

    def test_the_steps_stand_with_accuracy_interval_latency_and_size(self, samples: ModuleType) -> None:
        text = report_markdown(samples.sample_report())
        (row,) = [line for line in text.splitlines() if line.startswith("| 06-quantize | int8")]
        for figure in ("98.05 (96.03 to 99.05)", "0.256 (0.253 to 0.259)", "**11.62×**", "62.7", "41,710", "9.9"):
            assert figure in row

    def test_what_was_not_measured_says_why(self, samples: ModuleType) -> None:
        text = report_markdown(samples.sample_report())
        assert "not measured (420 of 1,000 samples)" in text
        assert "not measured (the system does not tell)" in text

    def test_goals_audit_facts_recipe_and_machine_are_there(self, samples: ModuleType) -> None:
        text = report_markdown(samples.sample_report())
        for words in ("✗ missed", "/linear/Gemm", "tucker2", "```yaml\nname: digits", "AMD EPYC", "avx2", "5d0c9e3f"):
            assert words in text

    def test_the_terms_of_a_loss_stand_with_their_last_value_and_shares(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        text = report_markdown(report)
        assert text.count("### Terms of the loss") == 4
        share = [point.gradient_shares["at"] for point in report.steps[1].curve if point.gradient_shares]
        value = report.steps[1].curve[-1].terms["at"]
        assert f"| at | {value:.3f} | {100 * sum(share) / len(share):.1f} | {100 * share[-1]:.1f} |" in text
        assert "| hint | 0 |" in text
        assert "share of the gradient is that of its own gradient's length" in text

    def test_signs_in_names_do_not_break_the_page(self, samples: ModuleType) -> None:
        hostile = samples.Sketch("02-<b>|`x`\n| y", 350, 2.0, 100, 100)
        text = report_markdown(samples.sample_report([samples.SKETCHES[0], hostile], recipe="a: |\n  ```\n  ````\n"))
        assert "<b>" not in text
        assert "02-&lt;b&gt;\\|\\`x\\` \\| y" in text
        assert "`````yaml" in text

    def test_a_run_that_stopped_at_the_teacher_has_a_report(self, samples: ModuleType) -> None:
        assert "Only the teacher was made so far" in report_markdown(samples.sample_report(samples.SKETCHES[:1]))

    def test_what_an_engines_precision_does_not_tell_is_remarked(self, samples: ModuleType) -> None:
        report = samples.sample_report()
        assert "Remarks on the final engines" not in report_markdown(report)
        told = report.engines[0].model_copy(update={"remarks": ("computes in float32",)})
        text = report_markdown(report.model_copy(update={"engines": (told, *report.engines[1:])}))
        assert "| onnxruntime cpu fp32 | computes in float32 |" in text
