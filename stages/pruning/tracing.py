"""Following channels through a model: its captured graph is run with labels beside the values.

Each operator that only moves values moves the labels by itself, so no map of indices is written by hand; the others are
in operators.py. Nothing here knows what a cut is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ...pipeline.blueprint import LayerSize, layer_sizes
from ...pipeline.errors import ModelError, StageError
from ...pipeline.quantization import capture, module_path, operator_name
from .labels import Labels

CONSTANT = "they meet a constant of fixed size"

Found = Tensor | list[Tensor | None] | None
"""The labels of what an operator returns: of a tensor, of several, or of none."""


@dataclass(frozen=True)
class Split:
    """Channels that were dealt out to equal parts: each part has to lose as many."""

    labels: Tensor
    dim: int
    sizes: tuple[int, ...]
    path: str
    """Of the module whose code does it."""


@dataclass(frozen=True)
class Picked:
    """Channels that code picks by number, which no other may take the place of."""

    labels: Tensor
    dim: int
    below: int
    """Those before this one."""
    reason: str


@dataclass(frozen=True)
class Bundle:
    """A head of attention, and channels that are inside it."""

    heads: Tensor
    channels: Tensor
    """Of the same shape."""


@dataclass
class Trace:
    """What a model does with its channels."""

    labels: Labels = field(default_factory=Labels)
    reads: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The label of each input channel, by layer."""
    writes: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The label of each output channel, by layer; of a norm's channels."""
    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The labels of the elements of parameters and buffers outside of layers, by name."""
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    splits: list[Split] = field(default_factory=list[Split])
    picked: list[Picked] = field(default_factory=list[Picked])
    bundles: list[Bundle] = field(default_factory=list[Bundle])
    contracted: list[Tensor] = field(default_factory=list[Tensor])
    """The first factor's channels of every product of two activations over channels."""
    opaque: dict[str, str] = field(default_factory=dict[str, str])
    """Modules with weights of their own that only an unknown operator reads, and that operator."""

    def read(self, path: str, labels: Tensor) -> None:
        """A layer reads these channels."""
        self._used(self.reads, path, labels)

    def write(self, path: str, labels: Tensor) -> Tensor:
        """A layer writes these channels; each time it runs, the same ones."""
        return self._used(self.writes, path, labels)

    def _used(self, side: dict[str, Tensor], path: str, labels: Tensor) -> Tensor:
        if path in side:
            self.labels.join(side[path], labels, f"`{path}` runs on them and on a constant")
        return side.setdefault(path, labels)


def traced(model: nn.Module, inputs: Mapping[str, Tensor], rules: "Rules") -> Trace:
    """Follow the channels of `model` by what the rules say of each operator.

    Raises StageError where torch.export cannot capture it.
    """
    try:
        graph = capture(model, inputs)
    except ModelError as error:
        raise StageError(f"no channels can be pruned, since they are followed in the model's graph: {error}") from error
    # A parameter outside of any layer has labels for all its elements at first; which of its dimensions has the
    # channels shows from what its elements are joined with, and the second time it is labelled along that alone.
    first = _run(_Run(graph, model, rules, {}), inputs)
    if not first.tensors:
        return first
    varying = {
        name: [dim for dim in range(labels.ndim) if first.labels.varies(labels, dim)]
        for name, labels in first.tensors.items()
    }
    return _run(_Run(graph, model, rules, varying), inputs)


def _run(run: "_Run", inputs: Mapping[str, Tensor]) -> Trace:
    with torch.no_grad():
        run.run(*inputs.values())
    return run.trace


class Call:
    """One operator of the graph with its arguments, their labels and what it returned."""

    def __init__(self, run: "_Run", node: fx.Node, value: Any) -> None:
        self.trace, self.value = run.trace, value
        self.name, self.path = operator_name(node), module_path(node)
        self._run, self._node = run, node
        names = [argument.name for argument in cast(Any, node.target)._schema.arguments]
        self._arguments: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument's value, by the name that the operator's schema has for it."""
        return self._run.valued(self._arguments.get(name, default))

    def labels(self, name: str) -> Tensor | None:
        """The labels of a tensor argument; None where it has no channels."""
        return cast(Tensor | None, self._run.labelled(self._arguments.get(name)))

    def tensors(self) -> list[tuple[Tensor, Tensor | None]]:
        """All tensor arguments, and their labels."""
        nodes = [node for node in self._node.all_input_nodes if isinstance(self._run.valued(node), Tensor)]
        return [(self._run.valued(node), cast(Tensor | None, self._run.labelled(node))) for node in nodes]

    @property
    def values(self) -> list[Tensor]:
        """What was returned, be it one tensor or several."""
        return list(cast(list[Tensor], self.value)) if isinstance(self.value, (tuple, list)) else [self.value]

    def moved(self) -> Found:
        """What the operator makes of the labels when it moves these instead of the values."""
        return self._run.moved(self._node)

    def layer(self, name: str = "weight") -> str | None:
        """The path of the layer whose own tensor the argument is, or whose call this is; None for none of ours."""
        node = self._arguments.get(name)
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self._run.owner(str(node.target), name, self.path)
        return self.path if node is None and self.path in self._run.sizes else None

    def size_of(self, path: str) -> LayerSize:
        """The size of one of our layers."""
        return self._run.sizes[path]

    def new_channels(self, count: int) -> Tensor:
        """Labels for channels that are made here."""
        return self.trace.labels.fresh(count)

    def weights(self) -> list[str]:
        """The names of the parameters among the arguments."""
        return [str(node.target) for node in self._node.all_input_nodes if node.op == "get_attr"]

    def stuck(self, reason: str = "") -> None:
        """All channels that enter the call stay; what it returns has none."""
        reason = reason or f"they pass through {self.place}, whose channels cannot be taken out"
        for _, labels in self.tensors():
            if labels is not None:
                self.trace.labels.stick(labels, reason)
        for name in self.weights():
            self.trace.opaque.setdefault(name.rpartition(".")[0], self.name)

    @property
    def place(self) -> str:
        """The module that runs the operator, for a sentence."""
        module = self._run.model.get_submodule(self.path)
        return f"`{self.path}`, a {type(module).__name__}" if self.path else f"the model's own code ({self.name})"


Rules = Callable[[Call], Found]
"""Says what labels an operator's outputs have."""


class _Run(fx.Interpreter):
    """One run of a graph on real values, with labels beside them."""

    def __init__(
        self, graph: fx.GraphModule, model: nn.Module, rules: "Rules", varying: Mapping[str, list[int]]
    ) -> None:
        super().__init__(graph)
        self._rules = rules
        self.model, self.trace, self.sizes = model, Trace(), layer_sizes(model)
        self._varying = varying
        # Not buffers that are computed anew for every model: what is left of these could not be loaded.
        self._own = model.state_dict()
        self._weights = {
            f"{path}.{name}": id(tensor)
            for path, module in cast(Iterable[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False))
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        }
        self._found: dict[fx.Node, Found] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; its labels are kept beside it for as long as it is needed."""
        value = super().run_node(n)
        self.env[n] = value
        self._found[n] = self._labels(n, value)
        for node in self.user_to_last_uses.get(n, ()):
            self._found.pop(node, None)
        return value

    def _labels(self, node: fx.Node, value: Any) -> Found:
        if node.op == "get_attr":
            return self._of_parameter(str(node.target), value)
        if node.op == "output":
            self.trace.outputs = [each for arg in node.all_input_nodes if isinstance(each := self._found[arg], Tensor)]
            return None
        if node.op != "call_function":
            return None
        if operator_name(node) == "getitem":
            several = self._found.get(cast(fx.Node, node.args[0]))
            return several[cast(int, node.args[1])] if isinstance(several, list) else None
        return self._rules(Call(self, node, value)) if hasattr(node.target, "_schema") else None

    def _of_parameter(self, name: str, value: Any) -> Tensor | None:
        """Labels for a tensor outside of any layer, along the dimensions that hold channels."""
        own = self._own.get(name)
        path, _, attribute = name.rpartition(".")
        if own is None or self.owner(name, attribute, path) or not own.is_floating_point():
            return None
        if name not in self.trace.tensors:
            varying = self._varying.get(name, range(own.ndim))
            shape = [size if dim in varying else 1 for dim, size in enumerate(own.shape)]
            count = torch.Size(shape).numel()
            self.trace.tensors[name] = self.trace.labels.fresh(count).view(shape).expand(own.shape)
        return self.trace.tensors[name]

    def owner(self, name: str, attribute: str, running: str) -> str | None:
        """The layer that holds the tensor `name` as its `attribute`: the one that runs, where several do."""
        tensor = self._weights.get(name)
        paths = [path for path in self.sizes if tensor and self._weights.get(f"{path}.{attribute}") == tensor]
        return running if running in paths else next(iter(paths), None)

    def valued(self, argument: Any) -> Any:
        """An argument with values for its nodes."""
        return _replaced(argument, self.env.__getitem__)

    def labelled(self, argument: Any) -> Found:
        """The labels of an argument that is a node."""
        return self._found.get(argument) if isinstance(argument, fx.Node) else None

    def moved(self, node: fx.Node) -> Found:
        """The node's operator on the labels; tensors without labels are zeros."""

        def move(each: fx.Node) -> Any:
            value, labels = self.env[each], self._found.get(each)
            if not isinstance(value, Tensor) or (labels is None and not value.is_floating_point()):
                return value  # a size, or the indices that say where to move
            return labels if labels is not None else torch.zeros((), dtype=torch.long).expand(value.shape)

        args, kwargs = _replaced(node.args, move), _replaced(node.kwargs, move)
        target = torch.ops.aten.reshape.default if operator_name(node) in {"view", "_unsafe_view"} else node.target
        moved = cast(Any, target)(*args, **kwargs)
        return list(cast(list[Tensor | None], moved)) if isinstance(moved, (tuple, list)) else moved


def _replaced(argument: Any, replace: Callable[[fx.Node], Any]) -> Any:
    return cast(Any, map_arg)(argument, replace)
