"""The recipe for texts, in a shortened form: from sentences to an int8 engine in a bundle that reads sentences."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.pipeline.cli import main
from potstill.pipeline.report import Report
from potstill.pipeline.tokenizer import FILE, Tokenizer
from tests.support.command_line import ROOT
from tests.support.small_texts import texts, write_splits

SHARED = ROOT.parent / "shared" / "data" / "sst2"
SHORT = (
    "data.path=texts",
    "data.batch_size=32",
    "data.validation=16",
    "data.vocabulary=300",
    "data.max_length=32",
    "teacher.model={name: text_encoder, depth: 2, width: 32, heads: 2}",
    "stages.train.epochs=1",
    "stages.distill.student={name: text_encoder, depth: 1, width: 16, heads: 2}",
    "stages.distill.epochs=1",
    "goals={}",
)

pytest.importorskip("tokenizers", reason="needs the text extra")


def arguments(folder: Path, *more: str) -> list[str]:
    """Of `potstill run`, for a copy of the recipe in the folder."""
    recipe = folder / "sst2.yaml"
    recipe.write_text((ROOT / "configs" / "sst2.yaml").read_text())
    settings = [word for each in (*SHORT, *more) for word in ("--set", each)]
    return [str(recipe), *settings, "--runs-dir", str(folder / "runs")]


def finished(folder: Path) -> Report:
    """The report of the run in the folder."""
    return Report.model_validate_json((folder / "runs" / "sst2" / "report.json").read_bytes())


@pytest.mark.slow
def test_every_stage_of_the_recipe_is_for_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_splits(tmp_path / "texts", train=128, test=48)
    assert main(["check", *arguments(tmp_path)]) == 0
    told = capsys.readouterr().out
    for step in ("01-train", "02-distill", "03-prune", "04-factorize", "05-quantize", "onnxruntime cpu int8"):
        assert step in told


@pytest.mark.slow
def test_a_bundle_of_a_text_run_reads_sentences(tmp_path: Path) -> None:
    write_splits(tmp_path / "texts", train=256, test=64)
    short = arguments(tmp_path, "stages.train.learning_rate=0.003", "stages.train.epochs=6")
    assert main(["run", *short, "--until", "train"]) == 0
    engine = finished(tmp_path).steps[0].engine
    assert engine.score.value > 0.9
    assert any("timed on samples of length" in remark for remark in engine.remarks)
    bundle = tmp_path / "bundle"
    assert main(["bundle", str(tmp_path / "runs" / "sst2"), "--output", str(bundle)]) == 0
    assert "tokenizers==" in (bundle / "requirements.txt").read_text()
    lines, labels = texts(12, 7)
    told = subprocess.run(
        [sys.executable, "-I", str(bundle / "run.py"), *lines], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    right = sum(name == ("negative", "positive")[label] for name, label in zip(told, labels, strict=True))
    assert right >= 10


@pytest.mark.slow
def test_a_student_learns_from_a_few_hundred_sentences(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data/sst2")
    (tmp_path / "texts").mkdir()
    for name, count in (("train", 400), ("test", 64)):
        with np.load(SHARED / f"{name}.npz", allow_pickle=False) as archive:
            lines = archive["text"].tobytes().decode().split("\n")[:count]
            np.savez(
                tmp_path / "texts" / f"{name}.npz",
                text=np.frombuffer("\n".join(lines).encode(), np.uint8),
                y=archive["y"][:count],
            )
    assert main(["run", *arguments(tmp_path), "--until", "distill"]) == 0
    report = finished(tmp_path)
    assert report.classes == ("negative", "positive")
    (point,) = report.steps[1].curve
    assert point.terms.keys() == {"task", "kd", "attention", "hidden_states"}
    assert report.steps[1].macs < report.steps[0].macs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers imports whatever it finds, with notices of its own
def test_a_local_model_of_transformers_teaches(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the text extra")
    write_splits(tmp_path / "texts", train=64, test=16)
    tokenizer = Tokenizer.trained(texts(64, 0)[0], vocabulary=100, max_length=32, lowercase=True)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / FILE).write_text(tokenizer.json)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        num_labels=2,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    distill = (
        "{stage: distill, student: {name: text_encoder, depth: 1, width: 16, heads: 2}, "
        "knowledge: [kd, hidden_states], epochs: 1, optimizer: adamw, learning_rate: 0.001}"
    )
    taught = ("data.tokenizer=bert", "teacher={model: 'hf:bert'}", f"stages=[{distill}]")
    fp32 = "targets=[{runtime: onnxruntime, precision: [fp32]}]"
    left = [each for each in SHORT if not each.startswith(("stages", "teacher"))]
    settings = [word for each in (*left, *taught, fp32) for word in ("--set", each)]
    recipe = tmp_path / "sst2.yaml"
    recipe.write_text((ROOT / "configs" / "sst2.yaml").read_text())
    assert main(["run", str(recipe), *settings, "--runs-dir", str(tmp_path / "runs")]) == 0
    assert [step.name for step in finished(tmp_path).steps] == ["01-teacher", "02-distill"]
