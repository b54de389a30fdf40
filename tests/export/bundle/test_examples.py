"""Facts about the examples of runtimes other than ONNX Runtime: that they load and run what those runtimes make."""

import ast
import shutil
from pathlib import Path

import numpy as np
import pytest

from potstill.export.bundle.deployments import DEPLOYMENTS
from potstill.export.bundle.manifest import Manifest
from potstill.export.bundle.recheck import outputs_of
from potstill.export.bundle.rendering import rendered
from potstill.export.bundle.writing import Contents, write_bundle
from potstill.pipeline.data import Dataset
from potstill.pipeline.progress import Silent


@pytest.mark.parametrize("tokenizer", [None, "tokenizer.json"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("runtime", DEPLOYMENTS)
def test_every_runtime_has_an_example_that_is_short_and_needs_nothing_of_ours(
    runtime: str, device: str, tokenizer: str | None
) -> None:
    text = rendered(f"{runtime}.py.jinja", device=device, tokenizer=tokenizer)
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name.partition(".")[0] for node in imports for alias in node.names} - {"json", "sys", "Path"}
    assert names <= {"numpy", *DEPLOYMENTS[runtime].packages, *(["tokenizers"] if tokenizer else [])}
    assert all(len(line) <= 120 for line in text.splitlines())
    assert len([line for line in text.splitlines() if line.strip()]) <= 65


def test_openvino_computes_in_its_example_what_onnx_runtime_computes(
    contents: Contents, data: Dataset, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    bundle = tmp_path / "bundle"
    write_bundle(contents, bundle, triton=False, replace=False, progress=Silent())
    other = Path(shutil.copytree(bundle, tmp_path / "openvino"))
    openvino.save_model(openvino.convert_model(bundle / "model.onnx"), other / "model.xml", compress_to_fp16=False)
    manifest = Manifest.load(bundle)
    record = manifest.engine.model_copy(update={"runtime": "openvino", "file": "model.xml"})
    (other / "manifest.json").write_text(manifest.model_copy(update={"engine": record}).model_dump_json())
    (other / "run.py").write_text(rendered("openvino.py.jinja", device="cpu", tokenizer=None))
    ours, theirs = (outputs_of(folder, data, 64) for folder in (bundle, other))
    assert theirs.dtype == np.float32
    # Codes that fall on the other side of a rounding move the outputs by a few steps of their grid.
    assert np.abs(ours - theirs).mean() <= 0.05 * ours.std()
