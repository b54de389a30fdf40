"""Facts about compare.json."""

import json
from pathlib import Path
from types import ModuleType

from potstill.pipeline.comparison.record import ComparisonRecord
from potstill.pipeline.comparison.request import compared_as_asked
from potstill.pipeline.views.compare_views import comparison_files


class TestComparisonRecord:
    def test_holds_what_the_pages_say_and_comes_back_equal(self, samples: ModuleType, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(samples.with_several_targets(samples.sample_report()).model_dump_json())
        far = samples.machine("Another Processor")
        (tmp_path / "profile.json").write_text(samples.profile_text(on=far, layers=samples.operators(["a"], 1.0)))
        compared = compared_as_asked(
            [tmp_path, tmp_path / "profile.json"], fail_if=["p99_ms>0.1"], budgets=["p50_ms=0.4"]
        )
        text = comparison_files(compared)["compare.json"]
        record = ComparisonRecord.model_validate_json(text)
        assert record == ComparisonRecord.of(compared)
        assert (record.version, record.kind) == (1, "comparison")
        assert [(each.letter, each.kind, each.machine_number) for each in record.sources] == [
            ("A", "run", 1),
            ("B", "profile", 2),
        ]
        engines = {each.mark: each for each in record.engines}
        assert [mark for mark, each in engines.items() if each.main] == ["A6", "B1"]
        assert [mark for mark, each in engines.items() if each.on_front] == ["A2", "A3", "A5", "A6c"]
        assert engines["B1"].on_front is None
        assert engines["A6d"].rivals[0].mark == "A6c"
        assert (record.against_first[0].speedup, record.against_first[0].speedup_reason) == (None, "different machines")
        assert record.against_first[0].layers_reason == "different machines"
        assert (record.budgets[0].axis, record.budgets[0].label) == ("p50_ms", "budget")
        assert record.judgements[0].failed
        assert json.loads(text)["judgements"][0]["condition"] == "p99_ms>0.1"
