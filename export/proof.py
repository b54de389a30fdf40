"""What a graph computes when it is read literally: ONNX Runtime with its optimisations off, node by node."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..pipeline.data import Dataset
from ..pipeline.errors import ExportError
from ..pipeline.seeding import generator
from .dialects import initializers
from .engine import Array
from .measurement import Parity
from .parity import numpy_inputs, parity_between
from .sixteen_bits import element_types
from .target import INT8

if TYPE_CHECKING:
    from onnx import ModelProto

    from ..pipeline.fake_quantization import FakeQuantizedModel

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


def proof_of(
    model: "ModelProto",
    reference: "FakeQuantizedModel",
    whole: nn.Module,
    data: Dataset,
    unrounded: Iterable[str],
    *,
    in_half: bool = False,
) -> Parity:
    """Compare a quantized graph, read literally, with the fake-quantized model on the first test samples.

    `unrounded` are the activations, by the names of `Quantization`, whose quantizer the graph leaves out; they are not
    rounded in the reference either. `whole` is the model in float; `in_half` says that the graph's float part is in 16
    bits.
    """
    with reference.rounding(on=False, names=unrounded):
        return parity_between(Unoptimised(model).run, reference, whole, data, INT8, in_half=in_half)


def unrounded_activations(graph: "ModelProto", form: "ModelProto", reference: "FakeQuantizedModel") -> tuple[str, ...]:
    """The activations that are rounded in an exported graph and nowhere in a form that was made of it.

    Quantizers are told apart by their scales and, where these are equal, by the order in which they run.
    """
    import onnx

    waiting: dict[float, list[str]] = {}
    for name in reference.rounded_in_order():
        waiting.setdefault(float(reference.activation(name).scale), []).append(name)
    constants = initializers(graph.graph)
    left = {node.name for node in form.graph.node if node.op_type == "QuantizeLinear"}
    rounded: set[str] = set()
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear":
            name = waiting[float(onnx.numpy_helper.to_array(constants[node.input[1]]))].pop(0)
            rounded |= {name} if node.name in left else set()
    return tuple(dict.fromkeys(name for name in reference.rounded_in_order() if name not in rounded))


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
    # Drawn, because splits may lie class after class.
    drawn = torch.randperm(len(data.train), generator=generator(0, "measured ranges"))[:RANGE_SAMPLES]
    for index in torch.split(drawn, BATCH_SIZE):
        for name, values in graph.run(numpy_inputs(data.train.batch(index).inputs)).items():
            # NaN, too, must end up above every limit.
            found = np.nan_to_num(np.abs(values), nan=np.inf).max(initial=0)
            largest[name] = max(largest[name], float(found))
    return largest
