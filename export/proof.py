"""What a graph computes when it is read literally: ONNX Runtime with its optimisations off, node by node."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from ..pipeline.artifact import Artifact
from ..pipeline.data import Dataset
from ..pipeline.errors import ExportError
from .engine import Array
from .measurement import Parity
from .parity import numpy_inputs, parity_between
from .sixteen_bits import element_types
from .target import INT8

if TYPE_CHECKING:
    from onnx import ModelProto

RANGE_SAMPLES = 64
"""Training samples by whose values a graph's ranges are measured."""
BATCH_SIZE = 16
"""Of these; every tensor of the graph is held at once."""


class Unoptimised:
    """A graph as it is written, without fusions: what a runtime that follows the standard computes."""

    def __init__(self, model: "ModelProto", outputs: Iterable[str] | None = None) -> None:
        """`outputs` are read instead of the graph's own."""
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

        ort: Any = onnxruntime
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            self._session: Any = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ExportError(f"ONNX Runtime cannot run the graph as it is written: {error}") from error
        self._outputs = [entry.name for entry in self._session.get_outputs()] if outputs is None else list(outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


def proof_of(model: "ModelProto", artifact: Artifact, data: Dataset, unrounded: Iterable[str]) -> Parity:
    """Compare a quantized graph, read literally, with the fake-quantized model in PyTorch on the first test samples.

    `unrounded` are the activations, by the names of `Quantization`, whose quantizer the graph leaves out; they are not
    rounded in the reference either.
    """
    from ..pipeline.fake_quantization import FakeQuantizedModel

    reference = cast(FakeQuantizedModel, artifact.executable(data.example()))
    with reference.rounding(on=False, names=unrounded):
        return parity_between(Unoptimised(model).run, reference, artifact.model, data, INT8)


def measured_ranges(model: "ModelProto", data: Dataset) -> dict[str, float]:
    """The largest absolute value of every float tensor over some training samples."""
    import numpy as np
    import onnx

    floats = {name for name, kind in element_types(model).items() if kind == onnx.TensorProto.FLOAT}
    seen = [name for node in model.graph.node for name in node.output if name in floats]
    seen += [value.name for value in model.graph.input if value.name in floats]
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    open_model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in seen if name not in own
    )
    graph = Unoptimised(open_model, seen)
    largest = dict.fromkeys(seen, 0.0)
    for start in range(0, min(RANGE_SAMPLES, len(data.train)), BATCH_SIZE):
        stop = min(start + BATCH_SIZE, RANGE_SAMPLES, len(data.train))
        batch = data.train.batch(torch.arange(start, stop)).inputs
        for name, values in graph.run(numpy_inputs(batch)).items():
            # NaN, too, must end up above every limit.
            found = np.nan_to_num(np.abs(values), nan=np.inf).max(initial=0)
            largest[name] = max(largest[name], float(found))
    return largest
