"""Facts about networks that people bring: every stage takes them or says why not, and their int8 engines agree."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget, optimized
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Resize
from potstill.pipeline.data import Dataset
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.prune import Budget, Prune
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Stage
from tests.support.contexts import context_on
from tests.support.families import FAMILIES
from tests.support.family_data import family_artifact, family_data

UNTRAINED = Recovery(epochs=0)
PRUNE = Prune(keep=Budget(channels=0.85), round_to=4, criterion="l2", recover=UNTRAINED)
FACTORIZE = Factorize(keep=Keep(energy=0.8), recover=UNTRAINED)
QUANTIZE = Quantize(recover=UNTRAINED)
STREAMS = {
    "convnext": ("2.norm", "2.scale"),
    "vit_split_qkv": ("token", "positions", "norm"),
    "vit_fused_qkv": ("token", "positions", "norm"),
    "text_encoder": ("words", "positions", "norm"),
}
"""Some of what a transformer's stream passes: it is narrower behind `prune`."""
FLOAT_LAYERS = {"lstm": {"recurrent"}, "gru": {"recurrent"}}
"""For which ONNX Runtime has no int8 kernel."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """One family's name."""
    return request.param


def through(stages: tuple[Stage, ...], artifact: Artifact, data: Dataset, folder: Path) -> Artifact:
    for number, stage in enumerate(stages):
        artifact = stage.run(artifact, context_on(data, folder / str(number)))
    return artifact


def int8_engine(artifact: Artifact, data: Dataset, folder: Path) -> BuiltEngine:
    metadata = OnnxMetadata(recipe_hash="", stage="all", classes=data.classes)
    return build_engine(artifact, OnnxRuntimeTarget(precision=("int8",)), "int8", folder, data, metadata=metadata)


@dataclass(frozen=True)
class Finished:
    """A family's network behind all stages."""

    data: Dataset
    artifact: Artifact
    engine: BuiltEngine


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Cuts, factorizes and quantizes; an engine that disagrees with its fake-quantized model is refused there."""

    @cache
    def build(family: str) -> Finished:
        folder, data = tmp_path_factory.mktemp(family), family_data(family)
        artifact = through((PRUNE, FACTORIZE, QUANTIZE), family_artifact(family, data), data, folder / "stages")
        return Finished(data, artifact, int8_engine(artifact, data, folder))

    return build


@pytest.fixture(scope="session")
def calibrated_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], BuiltEngine]:
    """Likewise of the network as it came, quantized alone."""

    @cache
    def build(family: str) -> BuiltEngine:
        folder, data = tmp_path_factory.mktemp(family), family_data(family)
        return int8_engine(through((QUANTIZE,), family_artifact(family, data), data, folder / "stages"), data, folder)

    return build


class TestAllStages:
    def test_every_layer_with_an_integer_kernel_runs_on_it(
        self, family: str, finished: Callable[[str], Finished]
    ) -> None:
        audit = finished(family).engine.audit
        assert audit is not None
        floats = {layer.name: layer.reason for layer in audit.layers if layer.precision == "float"}
        assert set(floats) == FLOAT_LAYERS.get(family, set())
        assert all("no int8 kernel for recurrent layers" in reason for reason in floats.values())

    def test_a_transformers_stream_is_narrower(self, family: str, finished: Callable[[str], Finished]) -> None:
        pruned = finished(family).artifact.blueprint.edits[0]
        assert isinstance(pruned, Resize)
        assert set(STREAMS.get(family, ())) <= {*pruned.layers, *pruned.tensors}

    def test_another_process_reloads_them_bit_equal(self, finished: Callable[[str], Finished], tmp_path: Path) -> None:
        for family in FAMILIES:
            data, artifact = finished(family).data, finished(family).artifact
            artifact.save(tmp_path / family, data.example())
            with torch.no_grad():
                ours = artifact.executable(data.example())(*data.example(4).values())
            np.save(tmp_path / family / "ours.npy", ours.numpy())
        child = f"""
import conftest, numpy, torch
from pathlib import Path
from potstill.pipeline.artifact import Artifact
from tests.support.family_data import family_data
for folder in Path({str(tmp_path)!r}).iterdir():
    data = family_data(folder.name)
    with torch.no_grad():
        model = Artifact.load(folder).executable(data.example())
        numpy.save(folder / "theirs.npy", model(*data.example(4).values()).numpy())
"""
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", child], check=True, cwd=root, timeout=300)
        for family in FAMILIES:
            ours, theirs = (np.load(tmp_path / family / f"{whose}.npy") for whose in ("ours", "theirs"))
            assert np.array_equal(ours, theirs), family


class TestInt8:
    def test_a_recurrent_layer_is_counted_step_by_step_and_is_in_float_on_purpose(
        self, calibrated_engine: Callable[[str], BuiltEngine]
    ) -> None:
        audit = calibrated_engine("lstm").audit
        assert audit is not None
        (recurrent,) = (layer for layer in audit.layers if layer.kind == "LSTM")
        assert recurrent.macs == 12 * 4 * 24 * (16 + 24)
        assert recurrent.on_purpose

    def test_a_transformers_linear_layers_keep_their_bias_in_the_integer_kernel(
        self, calibrated_engine: Callable[[str], BuiltEngine]
    ) -> None:
        operators = Counter(node.op_type for node in optimized(calibrated_engine("vit_split_qkv").path).graph.node)
        # Query, key, value, projection, two of the hidden layer, and the head.
        assert operators["QGemm"] == 7
        # Both products of the attention; the positions are the one addition of a constant.
        assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 2
        assert (operators["MatMul"], operators["Add"]) == (0, 1)

    def test_both_products_of_attention_in_one_operator_multiply_in_int8(
        self, calibrated_engine: Callable[[str], BuiltEngine]
    ) -> None:
        operators = Counter(node.op_type for node in optimized(calibrated_engine("text_one_operator").path).graph.node)
        assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 2
        assert operators["MatMul"] == 0

    def test_squeeze_and_excite_and_silu_multiply_in_int8(
        self, calibrated_engine: Callable[[str], BuiltEngine]
    ) -> None:
        operators = Counter(node.op_type for node in optimized(calibrated_engine("efficientnet").path).graph.node)
        silus, gates = 8, 2
        assert (operators["QLinearMul"], operators["QLinearSigmoid"]) == (silus + gates, silus + gates)
        assert operators["QLinearGlobalAveragePool"] == 3
