"""The graph that OpenVINO's CPU plugin executes, and which node of the exported graph each operator stands for.

It tells of every operator its kind, the precision it computes in, its kernel, and the names of the operators that were
fused into it (OpenVINO, `ov::exec_model_info`). They are those that `ir.py` gave them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

EDGES = frozenset({"Input", "Output"})
"""The kinds of what is in the graph and is not run, constants apart."""
MULTIPLIES = re.compile(r"Conv(?!ert)|FullyConnected|MatMul|Gemm|RNN|LSTM|GRU", re.IGNORECASE)

PART = "|"
"""Stands between a node's name and what OpenVINO made for a part of it."""
APPENDED = re.compile(r"(/(Dequantization\w+|WithoutBiases|transpose_b))+$")
"""What OpenVINO's transformations append to the name of a layer that they take apart."""


@dataclass(frozen=True)
class RuntimeOperator:
    """One operator."""

    name: str
    kind: str
    """OpenVINO's word for it, such as ``FullyConnected``."""
    precision: str
    """That it computes in, or where its weights alone are in few bits, that of these: such as ``u8`` or ``bf16``."""
    kernel: str
    """Such as ``brgconv_avx512_amx_I8``: behind the last line, the type that is multiplied."""
    nodes: tuple[str, ...]
    """The exported nodes that it computes, or parts of, as OpenVINO lists them."""

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution, a matrix product, or a recurrent layer."""
        return MULTIPLIES.search(self.kind) is not None

    @property
    def is_int8(self) -> bool:
        """Whether it multiplies int8 with int8."""
        return self.precision in ("i8", "u8") and re.search(r"_[iu]8$", self.kernel, re.IGNORECASE) is not None

    @property
    def has_stored_weight(self) -> bool:
        """Whether it multiplies floats by weights that stay in few bits."""
        return self.precision in ("i8", "u8", "i4", "u4") and not self.is_int8

    @property
    def layer(self) -> str:
        """The module path it came from: that of what multiplies, where it does; empty for what OpenVINO put in."""
        # A cast is named by the tensor that it casts, and that by the node that makes it.
        node = min(self.nodes, key=_rank, default="").partition(":")[0]
        # Others than ours name their nodes without a path: then the node is the layer.
        path = node.rpartition("/")[0] if "/" in node else node
        return "" if path.startswith("#") else path

    def __str__(self) -> str:
        return f"{self.kind} in {self.precision} by {self.kernel}"


def _rank(node: str) -> int:
    operator = node.rpartition("/")[2]
    return 0 if MULTIPLIES.search(operator) else 2 if operator in ("QuantizeLinear", "DequantizeLinear") else 1


@dataclass(frozen=True)
class RuntimeGraph:
    """All operators that run, in their order."""

    operators: tuple[RuntimeOperator, ...]

    @classmethod
    def of(cls, compiled: Any) -> Self:
        """Of a compiled model."""
        found = [_operator(node) for node in _running(compiled.get_runtime_model().get_ordered_ops())]
        if any("/" in name for each in found for name in each.nodes):
            # What has no path, then, is what OpenVINO put in.
            found = [replace(each, nodes=tuple(name for name in each.nodes if "/" in name)) for each in found]
        return cls(tuple(found))

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return dict(sorted(Counter(each.kind for each in self.operators).items()))

    def computing(self, node: str) -> RuntimeOperator | None:
        """The operator that multiplies for a node of the exported graph."""
        return next((each for each in self.operators if each.multiplies and node in each.nodes), None)


def _running(nodes: Sequence[Any]) -> Iterator[Any]:
    """Without inputs, outputs and constants; what reads nothing but constants runs once, when a model is loaded."""
    fixed: set[str] = set()
    for node in nodes:
        kind, sources = _fact(node, "layerType"), [value.get_node() for value in node.input_values()]
        if kind == "Const" or (sources and all(source.get_friendly_name() in fixed for source in sources)):
            fixed.add(node.get_friendly_name())
        elif kind not in EDGES:
            yield node


def _operator(node: Any) -> RuntimeOperator:
    origins = (APPENDED.sub("", name.partition(PART)[0]) for name in _fact(node, "originalLayersNames").split(","))
    return RuntimeOperator(
        name=node.get_friendly_name(),
        kind=_fact(node, "layerType"),
        precision=_fact(node, "runtimePrecision"),
        kernel=_fact(node, "primitiveType"),
        nodes=tuple(dict.fromkeys(name for name in origins if name)),
    )


def _fact(node: Any, name: str) -> str:
    facts = node.get_rt_info()
    return str(facts[name].astype(str)) if name in facts else ""
