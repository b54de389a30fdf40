"""What TensorRT's engine inspector tells of an engine, read from its JSON as versions 10 and 11 write it.

Version 10 joins a tensor's layout and type in ``Format/Datatype``, version 11 writes ``Format`` and ``DataType``; both
name the ONNX nodes that a layer stands for in ``Metadata`` (NVIDIA, "Engine Inspector", and the guide to migrate from
10 to 11).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ...pipeline.errors import ExportError
from ..measurement import LayerType, OperatorTime

FLOAT8 = r"float8\w*|fp8\w*|e4m3\w*"
_TYPES: tuple[tuple[str, str], ...] = (
    ("fp8", FLOAT8),
    ("bf16", r"bf16|bfloat16|bfloat"),
    ("fp16", r"fp16|float16|half"),
    ("float", r"fp32|float32|float"),
    ("uint8", r"uint8"),
    ("int8", r"int8"),
    ("int4", r"u?int4"),
    ("fp4", r"fp4\w*|float4\w*"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
)
COMPUTED: Mapping[str, LayerType] = {"fp8": "fp8", "bf16": "bf16", "fp16": "fp16", "float": "float", "int8": "int8"}
"""The types that layers multiply in."""
WIDTHS: Mapping[str, int] = {"fp8": 8, "int8": 8, "fp16": 16, "bf16": 16, "float": 32}
"""Bits of each."""

PASSIVE = re.compile(r"reformat|constant|noop|no_?op|shuffle|shape|slice|identity|signal|wait", re.IGNORECASE)
"""Kinds of layers that only move values, though their metadata may name a layer whose values they move."""
MULTIPLIES = re.compile(r"conv|gemm|matmul|matrix|fully|fc|mha|mma", re.IGNORECASE)

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_MYELIN_SUFFIX = re.compile(r"_myl\d+_\d+$")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of the engine, which may stand for several nodes of the graph."""

    name: str
    kind: str
    nodes: frozenset[str]
    """The ONNX nodes that it names."""
    inputs: tuple[str, ...]
    """Types, such as ``int8``; likewise the outputs."""
    outputs: tuple[str, ...]
    weights: str | None
    """The type of its weights, where the inspector tells it."""
    tactic: str

    @property
    def computes_in(self) -> LayerType | None:
        """The type that it multiplies in: the widest of its first input and its weights; None for no such type."""
        named = (*self.inputs[:1], *((self.weights,) if self.weights else ()))
        return widest([COMPUTED[each] for each in named if each in COMPUTED])

    @property
    def multiplies(self) -> bool:
        """Whether its kind, name or kernel is that of a convolution or matrix product."""
        return MULTIPLIES.search(f"{self.kind} {self.name} {self.tactic}") is not None


def widest(types: Iterable[LayerType]) -> LayerType | None:
    """That of the most bits; None of none."""
    return max(types, key=lambda kind: WIDTHS[kind], default=None)


def engine_layers(information: str) -> tuple[EngineLayer, ...]:
    """The layers in the inspector's JSON, in the order in which they run.

    Raises ExportError where it is no such JSON, and where the engine tells nothing but names of its layers.
    """
    layers = _listed(information)
    if not has_details(information):
        raise ExportError(
            "the engine tells only the names of its layers: it was not built with detailed profiling verbosity.\n"
            "Mend: build it again from its ONNX file, which potstill does with that verbosity."
        )
    return tuple(_layer(cast(dict[str, Any], layer)) for layer in layers)


def has_details(information: str) -> bool:
    """Whether more than names is told of the layers; engines from elsewhere may be built without."""
    return not any(isinstance(layer, str) for layer in _listed(information))


def kinds(information: str) -> dict[str, int]:
    """How many layers there are of each kind; of an engine without details, how many in all."""
    if not has_details(information):
        return {"layer": len(_listed(information))}
    return dict(sorted(Counter(layer.kind for layer in engine_layers(information)).items()))


def _listed(information: str) -> list[Any]:
    return cast(list[Any], _loaded(information).get("Layers", []))


def _loaded(information: str) -> dict[str, Any]:
    try:
        # Kernels' names may hold control characters, which strict JSON does not allow.
        loaded: object = json.loads(information, strict=False)
    except ValueError as error:
        raise ExportError(f"TensorRT's engine inspector returned no JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ExportError("TensorRT's engine inspector returned JSON without layers")
    return cast(dict[str, Any], loaded)


def _layer(layer: Mapping[str, Any]) -> EngineLayer:
    name, weights = str(layer.get("Name", "")), layer.get("Weights")
    return EngineLayer(
        name=name,
        kind=str(layer.get("LayerType", "")),
        nodes=frozenset(_nodes(name, str(layer.get("Metadata") or ""))),
        inputs=tuple(_tensor_type(tensor) for tensor in layer.get("Inputs", ())),
        outputs=tuple(_tensor_type(tensor) for tensor in layer.get("Outputs", ())),
        weights=_type_in(str(cast(Mapping[str, Any], weights).get("Type"))) if isinstance(weights, Mapping) else None,
        tactic=str(layer.get("TacticName", "")),
    )


def _nodes(name: str, metadata: str) -> Iterator[str]:
    """Those that the metadata names; without any, those that the layer's own name is put together from."""
    named = _NODE.findall(metadata)
    if named:
        yield from named
        return
    bare = re.sub(r"PWN\((.*?)\)", r"\1", _MYELIN_SUFFIX.sub("", name))
    yield from (part.strip() for part in re.split(r"\+|\|\||,", bare) if part.strip())


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    """``unknown`` where no type is named that is known."""
    keys = ("DataType", "Datatype", "Format/Datatype", "Format")
    return next((found for key in keys if (found := _type_in(str(tensor.get(key, ""))))), "unknown")


def _type_in(text: str) -> str | None:
    """The type that a text such as ``Row major linear FP16 format`` names."""
    for name, pattern in _TYPES:
        if re.search(rf"\b({pattern})\b", text, re.IGNORECASE):
            return name
    return None


def standing_for(node: str, layers: Sequence[EngineLayer]) -> tuple[EngineLayer, ...]:
    """The layers of the engine that compute a layer of the graph: those that multiply, where any does."""
    written = {node, node.replace(".", "_")}  # some of TensorRT's names have no dots
    found = [layer for layer in layers if layer.nodes & written and not PASSIVE.search(layer.kind)]
    return tuple([layer for layer in found if layer.multiplies] or found)


def tensor_remark(layers: Sequence[EngineLayer]) -> str:
    """How many of the tensors that layers make are of which type."""
    counts = Counter(kind for layer in layers for kind in layer.outputs)
    told = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"of the {sum(counts.values())} tensors that its {len(layers)} layers make, are {told}"


def operator_times_of(
    profile: Mapping[str, Sequence[float]], layers: Sequence[EngineLayer]
) -> tuple[OperatorTime, ...]:
    """A profile, milliseconds of every call by the layer's name, as the times of the model's layers."""
    import numpy as np

    by_name = {layer.name: layer for layer in layers}
    return tuple(
        OperatorTime(
            layer=_path(by_name.get(name)), operator=_kind(by_name.get(name), name), ms=float(np.median(times))
        )
        for name, times in profile.items()
    )


def _kind(layer: EngineLayer | None, name: str) -> str:
    return (layer.kind if layer is not None else "") or name


def _path(layer: EngineLayer | None) -> str:
    """The module path of the layer's convolution or matrix product, else of any node; empty for TensorRT's own."""
    nodes = sorted(layer.nodes) if layer is not None else []
    named = [node for node in nodes if "/" in node]
    main = [node for node in named if MULTIPLIES.search(node.rpartition("/")[2])]
    return (main or named or [""])[0].rpartition("/")[0]
