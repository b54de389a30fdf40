"""Graphs of the residual network, exported once."""

import onnx
import pytest

from potstill.export.onnx_file import OnnxMetadata, exported
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset


@pytest.fixture(scope="session")
def float_graph(float_artifact: Artifact, data: Dataset, metadata: OnnxMetadata) -> onnx.ModelProto:
    """As every runtime gets it, in fp32."""
    return exported(float_artifact, "fp32", data.example(), metadata)


@pytest.fixture(scope="session")
def int8_graph(symmetric_artifact: Artifact, data: Dataset, metadata: OnnxMetadata) -> onnx.ModelProto:
    """Likewise in int8, on symmetric grids."""
    return exported(symmetric_artifact, "int8", data.example(), metadata)
