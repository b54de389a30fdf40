"""An artifact as an ONNX model: one graph for every runtime, from which each takes its own dialect."""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..pipeline.artifact import Artifact
from ..pipeline.errors import ExportError, MissingDependency
from ..pipeline.grouped_weights import dequantize_linear
from ..pipeline.lengths import MASK, example_pair, free_inputs
from ..pipeline.quantization import Quantization, capture, dynamic_shapes
from ..pipeline.quiet import quiet
from ..pipeline.sharing import plain
from ..pipeline.sparsity import holds
from .codebooks import with_codebooks
from .notes import OURS
from .target import QUANTIZED

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPSET = 21
OUTPUT = "logits"
BATCH = "batch"
"""The name of the free first dimension of every input and output."""
LENGTH = "length"
"""The name of the second one of inputs of free length, such as a text's tokens; in the file's notes, the example's."""


@dataclass(frozen=True, kw_only=True)
class OnnxMetadata:
    """Where an ONNX file came from, written into it."""

    recipe_hash: str
    stage: str
    """The step that made the model."""
    classes: tuple[str, ...]
    """In the order of the outputs."""


def exported(artifact: Artifact, precision: str, inputs: Mapping[str, Tensor], metadata: OnnxMetadata) -> "ModelProto":
    """The artifact's float model, or its quantized graph with explicit quantize and dequantize nodes.

    `inputs` is an example batch; its names become the input names, its first dimension is left free. Equal weights
    give equal bytes: names are counted anew and nothing of this machine is in the file. Raises ExportError when the
    exporter or the ONNX checker refuses the model, when the artifact is not quantized to the precision asked, or when
    layers that are recorded as 2:4 sparse are not.
    """
    model = _normalized(_graph(artifact, precision, inputs), inputs)
    with_codebooks(model, artifact.model)
    if artifact.quantization is not None and artifact.quantization.weight_bits == 4:
        _pack_four_bits(model.graph)
    for key, value in (
        ("recipe_hash", metadata.recipe_hash),
        ("stage", metadata.stage),
        ("precision", precision),
        ("classes", json.dumps(metadata.classes, ensure_ascii=False)),
        *_length(inputs),
        *_sparsity(artifact),
    ):
        model.metadata_props.add(key=f"{OURS}{key}", value=value)
    check(model)
    return model


def _length(inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """How long the example is, where lengths are free: multiply-accumulates are counted for that."""
    if free_inputs(inputs):
        yield LENGTH, str(inputs[MASK].shape[1])


def _sparsity(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """The mark of 2:4 sparse layers, for runtimes that look for the pattern only when told."""
    layers = artifact.blueprint.sparse_layers
    for path in layers:
        weight = artifact.model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        if not holds(weight):
            raise ExportError(
                f"`{path}` is recorded as 2:4 sparse, but of some four weights more than two are not zero"
            )
    if layers:
        yield "sparsity", json.dumps({"pattern": "2:4", "layers": layers})


def exported_layer(
    layer: nn.Module, inputs: Mapping[str, Tensor], quantization: Quantization | None = None
) -> "ModelProto":
    """A layer by itself, for timing: no metadata, otherwise as `exported`; float unless a quantization is given."""
    model = _normalized(_layer_graph(layer, inputs, quantization), inputs)
    check(model)
    return model


def _layer_graph(layer: nn.Module, inputs: Mapping[str, Tensor], quantization: Quantization | None) -> nn.Module:
    if quantization is None:
        return capture(layer, inputs)
    from ..pipeline.fake_quantization import converted, fake_quantized

    with quiet():
        return converted(fake_quantized(layer, quantization, inputs), inputs)


def _normalized(graph: nn.Module, inputs: Mapping[str, Tensor]) -> "ModelProto":
    """Exported by torch, without its notes and numbers, the batch free."""
    model = _from_torch(graph, inputs)
    _strip(model)
    _free_batch(model.graph)
    _free_lengths(model.graph, free_inputs(inputs))
    _rename(model.graph)
    return model


def check(model: "ModelProto") -> None:
    """Raise ExportError unless the ONNX checker, with full shape inference, accepts the model."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)  # pyright: ignore[reportUnknownMemberType]
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported model is not valid ONNX: {error}") from error


def layer_name(node: "NodeProto") -> str:
    """The module path of a convolution or linear layer in a graph made by `exported`, such as ``layer1.0.conv1``."""
    return node.name.rsplit("/", 1)[0]


def _graph(artifact: Artifact, precision: str, inputs: Mapping[str, Tensor]) -> nn.Module:
    if precision not in QUANTIZED:
        return capture(plain(artifact.model), inputs)
    if artifact.quantization is None or artifact.quantization.scheme != precision:
        quantized = "not quantized" if artifact.quantization is None else f"quantized to {artifact.quantization.scheme}"
        raise ExportError(
            f"an {precision} engine was asked of a model that is {quantized}: add a quantize stage before this step "
            f"with `scheme: {precision}`, or take {precision} out of the target's precision"
        )
    from ..pipeline.fake_quantization import FakeQuantizedModel, converted

    with quiet():
        return converted(cast(FakeQuantizedModel, artifact.executable(inputs)), inputs)


def _from_torch(graph: nn.Module, inputs: Mapping[str, Tensor]) -> "ModelProto":
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport, reportMissingTypeStubs] # torch.onnx needs it
    except ImportError as error:
        raise MissingDependency("exporting to ONNX needs onnx and onnxscript: pip install onnx onnxscript") from error
    example = tuple(example_pair(inputs))
    # It warns, on the terminal, of operators of packages that are not installed and not used here.
    with quiet("torch.onnx", "torch.onnx._internal.exporter._registration"):
        try:
            program = torch.export.export(graph, example, dynamic_shapes=dynamic_shapes(graph, inputs))
            result = torch.onnx.export(  # pyright: ignore[reportUnknownMemberType]
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[OUTPUT],
                custom_translation_table={torch.ops.potstill.dequantize_groups.default: dequantize_linear},
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            cause = error.__cause__ or error
            raise ExportError(
                f"the model cannot be exported to ONNX: {type(cause).__name__}: {_first_line(cause)}\n"
                "Mend: replace the operator in the model by one that ONNX has, or by several simpler ones."
            ) from error
    assert result is not None  # with dynamo=True it always returns a program
    return result.model_proto


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


def _strip(model: "ModelProto") -> None:
    """Drop torch's notes, which hold stack traces with paths of this machine, and shapes that can be inferred again."""
    graph = model.graph
    for node in graph.node:
        node.doc_string = ""
    _name_by_module(graph)
    for thing in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del thing.metadata_props[:]
    del graph.value_info[:]
    graph.name = "potstill"


def _name_by_module(graph: "GraphProto") -> None:
    """Name each node ``module.path/Operator``, which is how audits name layers."""
    parameters = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = cast(list[str], ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "['']")))
        path = scopes[-2] if len(scopes) > 1 else ""
        weight = node.input[1] if len(node.input) > 1 else ""
        # The exporter folds a batch norm into its convolution and then takes the norm's place for the layer's.
        if weight in parameters and weight.endswith(".weight"):
            path = weight.removesuffix(".weight")
        node.name = f"{path}/{node.op_type}"


def _free_batch(graph: "GraphProto") -> None:
    for value in (*graph.input, *graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if dimension.HasField("dim_value"):
            raise ExportError(
                f"the exported model has a fixed batch of {dimension.dim_value} at {value.name}: "
                "the model writes a batch size into its graph; derive it from the input instead"
            )
        dimension.dim_param = BATCH


def _free_lengths(graph: "GraphProto", names: Sequence[str]) -> None:
    for value in graph.input:
        if value.name not in names:
            continue
        dimension = value.type.tensor_type.shape.dim[1]
        if dimension.HasField("dim_value"):
            raise ExportError(
                f"the exported model takes {value.name} of length {dimension.dim_value} only: the model writes a "
                "length into its graph; derive it from the input instead"
            )
        dimension.dim_param = LENGTH


def _pack_four_bits(graph: "GraphProto") -> None:
    """Store the codes of weights in groups, which torch can only hold as bytes, two in a byte."""
    import onnx

    codes = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.input[::2]}
    for tensor in graph.initializer:
        if tensor.name in codes:
            values = onnx.numpy_helper.to_array(tensor).flatten().tolist()
            tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, onnx.TensorProto.UINT4, tensor.dims, values))


def _rename(graph: "GraphProto") -> None:
    """Count nodes and tensors anew: torch's numbers depend on what the process exported before."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    new: dict[str, str] = {name: name for name in kept} | {"": ""}
    for tensor in graph.initializer:
        # Parameters have paths; constants that the exporter made have numbers.
        generated = tensor.name.startswith(("val_", "_frozen_param", "_tensor_constant"))
        new[tensor.name] = f"constant_{len(new)}" if generated else tensor.name
        tensor.name = new[tensor.name]
    seen: dict[str, int] = {}
    for node in graph.node:
        repeat = seen.get(node.name, 0)
        seen[node.name] = repeat + 1
        if repeat:
            path, _, operator = node.name.rpartition("/")
            node.name = f"{path}#{repeat}/{operator}"
        node.input[:] = [new[name] for name in node.input]
        for index, name in enumerate(node.output):
            new.setdefault(name, f"{node.name}:{index}" if index else f"{node.name}:out")
        node.output[:] = [new[name] for name in node.output]
