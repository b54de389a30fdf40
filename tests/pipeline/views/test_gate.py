"""Facts about what a report says first of compressions that did not pay."""

import io
from collections.abc import Sequence
from types import ModuleType

import pytest

from potstill.export.measurement import Comparison, Gate, Interval, Verdict
from potstill.pipeline.report import Report, StepReport
from potstill.pipeline.views import report_tables
from potstill.pipeline.views.html import report_html
from potstill.pipeline.views.markdown import report_markdown
from potstill.pipeline.views.terminal import print_report


def gated(
    step: StepReport, ratio: float, verdict: Verdict, diagnosis: Sequence[str], *, compresses: bool
) -> StepReport:
    """The step with a direct comparison of this outcome."""
    timing = step.timing.model_copy(
        update={"ratio": ratio, "interval": Interval(low=ratio - 0.01, high=ratio + 0.01), "verdict": verdict}
    )
    gate = Gate(comparison=timing, compresses=compresses, diagnosis=tuple(diagnosis))
    return step.model_copy(update={"gate": gate})


@pytest.fixture
def slow(samples: ModuleType) -> Report:
    """A report whose last step made the engine slower."""
    report: Report = samples.sample_report()
    last = gated(report.steps[-1], 0.8, "slower", ["`conv1` takes 2 ms, before 1 ms, now as Conv"], compresses=True)
    return report.model_copy(update={"steps": (*report.steps[:-1], last)})


class TestGate:
    def test_every_view_says_in_its_first_lines_what_did_not_pay_and_why(self, slow: Report) -> None:
        stream = io.StringIO()
        print_report(slow, stream)
        name = slow.steps[-1].name
        for text in (stream.getvalue(), report_markdown(slow), report_html(slow)):
            place = text.index(f"{name} did not make the engine faster: 0.80×")
            assert "takes 2 ms, before 1 ms" in text[place:].replace("\n", " ")
            assert place < text.index("What each step earned")

    def test_the_speedup_of_a_step_is_the_one_that_was_timed_directly(self, slow: Report) -> None:
        earned = slow.earned[-1].speedup
        assert earned is not None
        assert earned.ratio == 0.8

    def test_a_step_that_paid_or_is_no_compression_is_not_mentioned(self, samples: ModuleType) -> None:
        report: Report = samples.sample_report()
        paid = gated(report.steps[-1], 1.5, "faster", [], compresses=True)
        trained = gated(report.steps[-2], 0.8, "slower", [], compresses=False)
        report = report.model_copy(update={"steps": (*report.steps[:-2], trained, paid)})
        assert report_tables.gate_sentences(report) == ()

    @pytest.mark.parametrize(
        ("fact", "reason", "said"),
        [
            ("undone", "`accept: faster` asked for a faster engine", "was undone"),
            ("changed nothing", "no layer's factors cost less than the layer", "changed nothing"),
        ],
    )
    def test_a_step_that_left_the_model_as_it_came_says_so(
        self, fact: str, reason: str, said: str, slow: Report
    ) -> None:
        left = slow.steps[-1].model_copy(update={"facts": {fact: reason}})
        report = slow.model_copy(update={"steps": (*slow.steps[:-1], left)})
        assert report_tables.gate_sentences(report) == (f"{left.name} {said}: {reason}.",)

    def test_a_report_without_direct_comparisons_still_has_speedups(self, samples: ModuleType) -> None:
        report: Report = samples.sample_report()
        assert all(row.speedup is not None for row in report.earned[1:])
        assert isinstance(report.steps[-1].timing, Comparison)

    @pytest.mark.parametrize(("shrinks", "said"), [(True, False), (False, True)])
    def test_a_step_that_is_there_for_the_files_size_is_held_to_that(
        self, shrinks: bool, said: bool, slow: Report
    ) -> None:
        before, step = slow.steps[-2:]
        assert step.gate is not None
        size = before.engine.file_bytes // 2 if shrinks else 2 * before.engine.file_bytes
        engine = step.engine.model_copy(update={"file_bytes": size})
        step = step.model_copy(update={"gate": step.gate.model_copy(update={"aim": "size"}), "engine": engine})
        sentences = report_tables.gate_sentences(slow.model_copy(update={"steps": (*slow.steps[:-1], step)}))
        told = f"{step.name} did not make the engine's file smaller: 2.00× larger beside {before.name}."
        assert (told in sentences) is said
