"""A recipe with compact filters and shared weights passes `check` and runs up to its report."""

import json
from pathlib import Path

import pytest

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.cli import main
from potstill.pipeline.compact_filters import Compact
from potstill.pipeline.sharing import shared_weights

RECIPE = """
name: small
seed: 3
task: classification
precision: fp32
data: {source: digits, size: 8, batch_size: 64}
teacher:
  model: {name: resnet, depth: 8, width: 16}
stages:
  - {stage: train, epochs: 1, learning_rate: 0.1}
  - {stage: compact, keep: {macs: 0.6}, ignore: [conv1], recover: {epochs: 1}}
  - {stage: cluster, bits: 4, recover: {epochs: 1}}
targets:
  - {runtime: onnxruntime, device: cpu, precision: [fp32], batch: [1]}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe in a folder of its own, where the process then is."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE)
    return file


@pytest.mark.slow
def test_engines_get_faster_filters_and_then_a_smaller_file(recipe: Path) -> None:
    assert main(["check", str(recipe)]) == 0
    assert main(["run", str(recipe)]) == 0
    run = recipe.parent / "runs" / "small"
    train, compact, cluster = json.loads((run / "report.json").read_text())["steps"]
    assert compact["macs"] <= 0.6 * train["macs"]
    assert cluster["engine"]["file_bytes"] < 0.3 * compact["engine"]["file_bytes"]
    assert cluster["gate"]["aim"] == "size"
    reloaded = Artifact.load(run / "03-cluster" / "artifact")
    (edit, _) = reloaded.blueprint.edits
    assert isinstance(edit, Compact)
    assert any(f"{path}.1" in shared_weights(reloaded.model) for path in edit.layers)


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        (("{stage: cluster}", "{stage: prune, keep: {macs: 0.8}}"), "put `cluster` behind it"),
        (("{stage: quantize}", "{stage: cluster}"), "`quantize`, which stores weights as int8 codes"),
        (("{stage: compact, groups: 4}",), "`groups` is for `kind: grouped`"),
        (("{stage: cluster, bits: 4, clusters: 16}",), "give `bits` or `clusters`, not both"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    stages: tuple[str, ...], problem: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, _, rest = RECIPE.partition("  - {stage: compact")
    targets = rest[rest.index("targets:") :]
    recipe.write_text(before + "".join(f"  - {stage}\n" for stage in stages) + targets)
    assert main(["check", str(recipe)]) == 2
    assert problem in " ".join(capsys.readouterr().err.split())
