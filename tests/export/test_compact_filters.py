"""Facts about engines of networks with compact filters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.export.deliver import BuiltEngine
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.stages.compact import Compact
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from tests.support.contexts import context_on

UNTRAINED = Recovery(epochs=0)


@pytest.mark.parametrize("settings", [{}, {"kind": "grouped"}], ids=["depthwise_separable", "grouped"])
def test_compute_what_the_models_compute_and_run_in_int8_after_quantize(
    settings: dict[str, Any],
    float_artifact: Artifact,
    data: Dataset,
    built: Callable[[Artifact, str], BuiltEngine],
    tmp_path: Path,
) -> None:
    stage = Compact(ignore=("conv1",), recover=UNTRAINED, **settings)
    smaller = stage.run(float_artifact, context_on(data, tmp_path / "compact"))
    assert built(smaller, "fp32").parity.max_relative < 1e-5
    quantized = Quantize(recover=UNTRAINED).run(smaller, context_on(data, tmp_path / "quantize"))
    engine = built(quantized, "int8")
    assert engine.audit is not None
    assert engine.audit.int8_share == 1.0
    names = {layer.name for layer in engine.audit.layers}
    assert ("layer1.0.conv1.0" in names) is (stage.kind == "depthwise_separable")
