"""The README's example works as it stands there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from potstill.pipeline.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's files in a folder of their own."""
    for block in code_blocks("python") + code_blocks("yaml"):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestReadme:
    def test_the_example_of_an_own_model_and_own_data_runs(self, example: Path) -> None:
        (command,) = [line for block in code_blocks("console") for line in block.splitlines() if "my_recipe" in line]
        assert main(shlex.split(command.removeprefix("$ potstill "))) == 0
        report = json.loads((example / "runs" / "mine" / "report.json").read_text())
        assert [step["stage"] for step in report["steps"]] == ["train", "distill", "quantize"]
        assert report["steps"][-1]["engine"]["audit"]["int8_share"] == 1.0

    def test_the_example_has_at_most_thirty_lines_of_code(self) -> None:
        lines = [line for block in code_blocks("python") for line in block.splitlines() if line and line[0] != "#"]
        assert len(lines) <= 30

    def test_every_link_leads_somewhere(self) -> None:
        root = Path(__file__).parents[2]
        targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
        assert targets
        assert all((root / target).exists() for target in targets)
