"""Facts about int8 engines of factorized models: every factor runs on an integer kernel, whichever kind it is of."""

from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Factorize as FactorizeEdit
from potstill.pipeline.data import Dataset
from potstill.stages.factorization.splits import Kind
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on
from tests.support.family_data import family_artifact, family_data

UNTRAINED = Recovery(epochs=0)


def factorized(family: str, kind: Kind, data: Dataset, folder: Path) -> Artifact:
    stage = Factorize(keep=Keep(ratio=0.6), kinds=(kind,), round_to=8, recover=UNTRAINED)
    return stage.run(family_artifact(family, data), context_on(data, folder / "factorize"))


def int8_engine(artifact: Artifact, data: Dataset, folder: Path) -> BuiltEngine:
    quantized = Quantize(recover=UNTRAINED).run(artifact, context_on(data, folder / "quantize"))
    metadata = OnnxMetadata(recipe_hash="", stage="factorized", classes=data.classes)
    return build_engine(quantized, OnnxRuntimeTarget(precision=("int8",)), "int8", folder, data, metadata=metadata)


@pytest.mark.parametrize(
    ("family", "kind", "path", "parts"),
    [("densenet", "cp", "", 4), ("text_encoder", "embedding", "words", 1)],
)
def test_every_layer_of_the_factors_runs_in_int8(
    family: str, kind: Kind, path: str, parts: int, tmp_path: Path
) -> None:
    data = family_data(family)
    artifact = factorized(family, kind, data, tmp_path)
    edit = artifact.blueprint.edits[-1]
    assert isinstance(edit, FactorizeEdit)
    assert path in edit.layers or not path
    multiplying = [
        f"{place}.{name}"
        for place in edit.layers
        for name, layer in artifact.model.get_submodule(place).named_children()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert len(multiplying) == parts * len(edit.layers)
    audit = int8_engine(artifact, data, tmp_path).audit
    assert audit is not None
    precisions = {layer.name: layer.precision for layer in audit.layers}
    assert {name: precisions.get(name) for name in multiplying} == dict.fromkeys(multiplying, "int8")
    assert audit.int8_share == 1


def test_a_quantized_artifact_of_cp_factors_comes_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    data = family_data("densenet")
    artifact = factorized("densenet", "cp", data, tmp_path)
    quantized = Quantize(recover=UNTRAINED).run(artifact, context_on(data, tmp_path / "quantize"))
    quantized.save(tmp_path / "artifact", data.example())
    loaded = Artifact.load(tmp_path / "artifact")
    batch = data.example(4)
    with torch.no_grad():
        ours, theirs = (each.executable(batch)(*batch.values()) for each in (quantized, loaded))
    assert torch.equal(ours, theirs)
