"""Facts about reading profiles."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.pipeline.comparison.compare import load
from potstill.pipeline.comparison.profile_file import ProfileFile
from potstill.pipeline.errors import UsageError
from potstill.pipeline.report import Report


def changed(samples: ModuleType, **changes: Any) -> str:
    return json.dumps({**json.loads(samples.profile_text()), **changes})


class TestLoad:
    def test_reads_profiles_and_reports_by_what_they_are(self, samples: ModuleType, tmp_path: Path) -> None:
        profile, report = tmp_path / "profile.json", tmp_path / "report.json"
        profile.write_text(samples.profile_text())
        report.write_text(samples.sample_report().model_dump_json())
        assert isinstance(load(profile), ProfileFile)
        assert isinstance(load(report), Report)
        assert isinstance(load(tmp_path), Report)

    def test_what_later_profiles_say_besides_is_passed_over(self, samples: ModuleType, tmp_path: Path) -> None:
        file = tmp_path / "profile.json"
        file.write_text(changed(samples, command="potstill profile model.onnx"))
        loaded = ProfileFile.load(file)
        assert loaded is not None
        assert (loaded.entries[0].target, loaded.entries[0].layers) == ("onnxruntime cpu", None)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"version": 2}, "is a profile of version 2, which a newer potstill wrote.*update potstill"),
            ({"entries": []}, "is no profile that can be read: entries: .*writes it anew"),
            ({"machine": None}, "is no profile that can be read: machine: "),
        ],
    )
    def test_a_profile_that_cannot_be_understood_is_refused(
        self, changes: dict[str, Any], message: str, samples: ModuleType, tmp_path: Path
    ) -> None:
        file = tmp_path / "profile.json"
        file.write_text(changed(samples, **changes))
        with pytest.raises(UsageError, match=message):
            load(file)

    @pytest.mark.parametrize("text", ["", "[1]", '{"kind": "something else"}', "[" * 100_000])
    def test_what_is_neither_is_refused_as_no_run(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "file.json"
        file.write_text(text)
        with pytest.raises(UsageError, match=r"is not JSON|is no report of a run"):
            load(file)
