"""Facts about the pages."""

import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from potstill.pipeline.comparison.compare import compare
from potstill.pipeline.report import Report
from potstill.pipeline.views.compare_views import comparison_html
from potstill.pipeline.views.html import report_html

VOID = {"meta", "link", "br"}
HOSTILE = "<script>alert(1)</script>\"'&</style>"


class Reader(HTMLParser):
    """Collects what a page consists of, and checks that its tags nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(samples: ModuleType, report: Report) -> list[str]:
    return [report_html(report), comparison_html(compare([(Path("a"), report), (Path("b"), samples.sample_report())]))]


class TestPages:
    def test_need_nothing_but_themselves_and_are_small(self, samples: ModuleType) -> None:
        for page in pages(samples, samples.sample_report()):
            read = Reader(page)
            assert read.addresses == ["data:,"]
            assert {"script", "iframe", "object", "img"}.isdisjoint(read.tags)
            assert "@import" not in page
            assert "url(" not in page
            assert "default-src 'none'" in page
            assert len(page.encode()) < 300_000

    def test_stay_under_a_megabyte_with_twelve_steps_and_hundreds_of_layers(self, samples: ModuleType) -> None:
        sketches = [samples.Sketch(f"{n:02d}-step", 350, n, 10**6, 10**7, epochs=200) for n in range(1, 12)]
        report: Report = samples.sample_report([*sketches, samples.SKETCHES[-1]])
        final = report.steps[-1].engine
        assert final.audit is not None
        audit = final.audit.model_copy(update={"layers": final.audit.layers * 50})
        engine = final.model_copy(update={"audit": audit})
        assert len(report_html(report.model_copy(update={"engines": (engine,)})).encode()) < 1_000_000

    def test_show_every_section(self, samples: ModuleType) -> None:
        headings = re.findall("<h2>(.*?)</h2>", report_html(samples.sample_report()))
        assert headings == [
            "Goals",
            "What each step earned",
            "Every step's engine",
            "Accuracy against latency",
            "Training",
            "The final engines",
            "Precision audit",
            "What the stages say",
            "Run and machine",
            "How the numbers were taken",
        ]

    def test_every_drawing_is_described_and_every_id_is_used_once(self, samples: ModuleType) -> None:
        for page in pages(samples, samples.sample_report()):
            read = Reader(page)
            assert len(read.ids) == len(set(read.ids))
            drawings = re.findall(r'<svg [^>]*role="img" aria-labelledby="([^"]*)"', page)
            assert len(drawings) == page.count("<svg")
            assert all(set(each.split()) <= set(read.ids) for each in drawings)

    def test_every_table_has_column_heads_and_row_heads(self, samples: ModuleType) -> None:
        for page in pages(samples, samples.sample_report()):
            tables = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
            assert tables
            for table in tables:
                assert table.count('scope="row"') == table.count("<tr>") - 1
                assert '<th scope="col"' in table

    @pytest.mark.parametrize("place", ["name", "step", "fact", "recipe", "class", "goal", "processor", "layer"])
    def test_hostile_words_stay_words(self, place: str, samples: ModuleType) -> None:
        report: Report = samples.sample_report()
        first, *others = report.steps
        audit = samples.audit()
        layer = audit.layers[0].model_copy(update={"name": HOSTILE, "reason": HOSTILE})
        engine = report.engines[1].model_copy(update={"audit": audit.model_copy(update={"layers": (layer,)})})
        changes: dict[str, dict[str, object]] = {
            "name": {"name": HOSTILE},
            "step": {"steps": (first.model_copy(update={"name": HOSTILE}), *others)},
            "fact": {"steps": (first.model_copy(update={"facts": {HOSTILE: [{HOSTILE: HOSTILE}]}}), *others)},
            "recipe": {"recipe": f"name: >\n  {HOSTILE}\n"},
            "class": {"classes": (HOSTILE, "b")},
            "goal": {"goals": (report.goals[1].model_copy(update={"sentence": HOSTILE}),)},
            "processor": {"machine": report.machine.model_copy(update={"cpu_model": HOSTILE})},
            "layer": {"engines": (engine,)},
        }
        hostile = report.model_copy(update=changes[place])
        for page in pages(samples, hostile):
            assert "script" not in Reader(page).tags
            assert "<script" not in page
        assert "alert(1)" in Reader(report_html(hostile)).text

    def test_a_run_that_stopped_at_the_teacher_has_a_page(self, samples: ModuleType) -> None:
        page = report_html(samples.sample_report(samples.SKETCHES[:1]))
        assert "Only the teacher was made so far" in page
        assert "Not audited" in page

    def test_a_training_of_several_terms_has_a_table_of_them_and_one_of_a_single_term_has_none(
        self, samples: ModuleType
    ) -> None:
        page = report_html(samples.sample_report())
        assert page.count('aria-label="02-distill: terms of the loss"') == 1
        assert "01-train: terms" not in page
        table = page.partition("02-distill: terms of the loss")[2].partition("</table>")[0]
        assert [name for name in samples.MANY_TERMS if f'scope="row">{name}</th>' in table] == list(samples.MANY_TERMS)
        unlooked = page.partition("04-factorize: terms of the loss")[2].partition("</table>")[0]
        assert ("Gradient" in table, "Gradient" in unlooked) == (True, False)

    def test_knowledge_is_a_table_and_the_teacher_cache_is_told_in_units(self, samples: ModuleType) -> None:
        page = report_html(samples.sample_report())
        assert "<summary>Knowledge (3)</summary>" in page
        assert "layer1→layer1, layer2→layer2, layer3→layer3</td>" in page
        assert "asked 1,437, computed 0, hit rate 100 %, 57.5 kB" in page

    def test_goals_have_their_units(self, samples: ModuleType) -> None:
        text = re.sub(r"\s+", " ", Reader(report_html(samples.sample_report())).text)
        assert "✓ met1 point0.56 points" in text
        assert "✗ missed12×11.62×" in text
        assert "✗ missed1 msnot measured" in text

    def test_numbers_come_with_interval_samples_batch_and_threads(self, samples: ModuleType) -> None:
        text = re.sub(r"\s+", " ", Reader(report_html(samples.sample_report())).text)
        assert "95 % interval 11.45 to 11.81; batch 1, 1 thread, n = 1,040" in text
        assert "within noise; 95 % interval −2.73 to +1.53; n = 359" in text
        assert "not measured" in text
