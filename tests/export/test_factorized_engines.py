"""Facts about int8 engines of factorized models: every factor runs on an integer kernel, whichever kind it is of."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from potstill.export.deliver import OnnxMetadata, build_engine
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Factorize as FactorizeEdit
from potstill.pipeline.data import Dataset
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on
from tests.support.family_data import family_artifact, family_data

UNTRAINED = Recovery(epochs=0)


def quantized_precisions(stage: Factorize, artifact: Artifact, data: Dataset, folder: Path) -> dict[str, str]:
    """How each multiplying part of a factorized layer runs in the int8 engine, which is built, checked and audited.

    The quantized artifact has to come back from disk bit for bit on the way.
    """
    factorized = stage.run(artifact, context_on(data, folder / "factorize"))
    edit = factorized.blueprint.edits[-1]
    assert isinstance(edit, FactorizeEdit)
    quantized = Quantize(recover=UNTRAINED).run(factorized, context_on(data, folder / "quantize"))
    quantized.save(folder / "artifact", data.example())
    batch = data.example(4)
    with torch.no_grad():
        ours, theirs = (
            each.executable(batch)(*batch.values()) for each in (quantized, Artifact.load(folder / "artifact"))
        )
    assert torch.equal(ours, theirs)
    metadata = OnnxMetadata(recipe_hash="", stage="factorized", classes=data.classes)
    target = OnnxRuntimeTarget(precision=("int8",))
    audit = build_engine(quantized, target, "int8", folder, data, metadata=metadata).audit
    assert audit is not None
    assert audit.int8_share == 1
    precisions = {layer.name: layer.precision for layer in audit.layers}
    return {
        f"{path}.{name}": precisions[f"{path}.{name}"]
        for path in edit.layers
        for name, part in factorized.model.get_submodule(path).named_children()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }


def test_all_four_convolutions_of_cp_factors_run_in_int8(
    new_artifact: Callable[..., Artifact], data: Dataset, tmp_path: Path
) -> None:
    stage = Factorize(keep=Keep(ratio=0.6), kinds=("cp",), round_to=4, ignore=("layer2.*",), recover=UNTRAINED)
    found = quantized_precisions(stage, new_artifact(), data, tmp_path)
    assert {f"layer3.0.conv2.{number}" for number in range(4)} <= set(found)
    assert set(found.values()) == {"int8"}


def test_the_linear_layer_of_a_factorized_embedding_runs_in_int8(tmp_path: Path) -> None:
    data = family_data("text_encoder")
    stage = Factorize(keep=Keep(ratio=0.6), kinds=("embedding",), ignore=("positions",), recover=UNTRAINED)
    found = quantized_precisions(stage, family_artifact("text_encoder", data), data, tmp_path)
    assert found == {"words.1": "int8"}
