"""What the bundles of this folder are made of: a small network's int8 engine with its own measured numbers."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from potstill.export.bundle.manifest import Attribution, Provenance
from potstill.export.bundle.writing import Contents
from potstill.export.deliver import BuiltEngine, measure_engine
from potstill.export.machine import machine_facts
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.data import Dataset
from potstill.pipeline.task import Classification


@pytest.fixture(scope="package")
def contents(int8_engine: BuiltEngine, target: OnnxRuntimeTarget, data: Dataset) -> Contents:
    """Everything that a run knows of its engine."""
    measured = measure_engine(int8_engine, int8_engine, target, data, Classification(), file="02-quantize/x/model.onnx")
    return Contents(
        name="bars",
        engine=measured.engine,
        target=target,
        file=int8_engine.path,
        data=data,
        task=Classification(),
        task_name="classification",
        machine=machine_facts(),
        taken=datetime(2026, 11, 26, tzinfo=UTC),
        attribution=Attribution(data="bars", data_license="CC0", teacher="resnet", teacher_license=None),
        provenance=Provenance(
            run="bars", recipe="name: bars", recipe_hash="abc", seed=1, step="02-quantize", potstill="0"
        ),
    )


@pytest.fixture(scope="package")
def changed(contents: Contents) -> Callable[..., Contents]:
    """The same with another measurement of the engine."""

    def change(**values: object) -> Contents:
        return replace(contents, engine=contents.engine.model_copy(update=values))

    return change


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where a bundle goes; the folder above it is empty."""
    return tmp_path / "bundle"
