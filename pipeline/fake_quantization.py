"""A model under fake quantizers, built and converted by torchao's PT2E flow with our own quantizers.

Importing this module imports torchao, which takes a second or two: import it where it is used.
"""

import copy
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from .errors import ModelError
from .front_end import FRONT_END
from .grouped_quantizer import GroupedWeightQuantizer, store_weights
from .quantization import (
    ACTIVATION_LEVELS,
    LARGEST_SIGNED_CODE,
    SYMMETRIC_ZERO_POINT,
    ActivationRange,
    Grids,
    Quantization,
    capture,
    operator_name,
    tensor_names,
)
from .quiet import quiet
from .rounding import in_memory_order, rounded
from .sharding import extremes
from .taps import INPUT, Marked, path_of

# torchao says at import which GPU kernels it could not load, and that torch changed under it: neither is used here.
with quiet("torchao", "torch.utils._pytree"):
    from torchao.quantization.pt2e import FakeQuantizeBase  # pyright: ignore[reportMissingTypeStubs]
    from torchao.quantization.pt2e.quantize_pt2e import (  # pyright: ignore[reportMissingTypeStubs]
        convert_pt2e,
        prepare_pt2e,
    )
    from torchao.quantization.pt2e.quantizer import (  # pyright: ignore[reportMissingTypeStubs]
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
    )

RANGE_MOMENTUM = 0.05
"""How fast a trained range follows the batches: about the last twenty of them."""


class ActivationQuantizer(FakeQuantizeBase):
    """Rounds one activation to its uint8 grid; follows the range of what it sees in training mode."""

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, *, grids: Grids = "affine", **_: Any) -> None:
        super().__init__()  # torchao also passes what the specification says of dtype and range
        self.grids: Grids = grids
        self.rounds = True
        self.dtype, self.qscheme, self.ch_axis = torch.uint8, torch.per_tensor_affine, -1
        self.quant_min, self.quant_max = 0, ACTIVATION_LEVELS
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - untyped in torchao
        """The activation `x` on its grid, in its own dtype; gradients pass straight through inside the range."""
        if self.training:
            self._follow(x.detach())
        if not self.rounds:
            return x
        return rounded(x, self.scale, self.zero_point, 0, ACTIVATION_LEVELS)

    def calculate_qparams(  # pyright: ignore[reportIncompatibleMethodOverride] - untyped in torchao
        self, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point, as torchao's conversion asks for them."""
        return self.scale, self.zero_point

    def _follow(self, values: Tensor) -> None:
        low, high = extremes(in_memory_order(values))
        # Zero is always on the grid: padding and ReLU produce it exactly.
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        # The plain mean of the first batches, then one that forgets.
        self.seen += 1
        momentum = (1.0 / self.seen).clamp(min=RANGE_MOMENTUM)
        self.low.lerp_(low, momentum)
        self.high.lerp_(high, momentum)
        if self.grids == "symmetric":
            largest = torch.maximum(-self.low, self.high)
            self.scale.copy_((largest / LARGEST_SIGNED_CODE).clamp(min=torch.finfo(torch.float32).eps))
            self.zero_point.fill_(SYMMETRIC_ZERO_POINT)
            return
        self.scale.copy_(((self.high - self.low) / ACTIVATION_LEVELS).clamp(min=torch.finfo(torch.float32).eps))
        self.zero_point.copy_((-self.low / self.scale).round().to(torch.int32))

    def set_range(self, grid: ActivationRange) -> None:
        """Take over a learned grid."""
        self.scale.fill_(grid.scale)
        self.zero_point.fill_(grid.zero_point)
        steps_below = LARGEST_SIGNED_CODE if self.grids == "symmetric" else grid.zero_point
        self.low.fill_(-steps_below * grid.scale)
        self.high.fill_((ACTIVATION_LEVELS - grid.zero_point) * grid.scale)
        self.seen.fill_(1)

    def forget(self) -> None:
        """Let the next batches alone decide the range."""
        self.seen.zero_()

    def range(self) -> ActivationRange:
        """The grid as it stands."""
        return ActivationRange(scale=float(self.scale), zero_point=int(self.zero_point))


class WeightQuantizer(FakeQuantizeBase):
    """Rounds a weight to int8, one symmetric scale an output channel, which follows the weight's values."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, *, bits: Literal[7, 8], axis: Literal[0, 1] = 0, **_: Any) -> None:
        """`axis` is that of the output channels."""
        super().__init__()
        self.bits: Literal[7, 8] = bits
        self.axis: Literal[0, 1] = axis
        self.largest_code = 2 ** (bits - 1) - 1
        self.follows = True
        self.rounds = True
        self.dtype, self.qscheme, self.ch_axis = torch.int8, torch.per_channel_symmetric, axis
        self.quant_min, self.quant_max = -128, 127
        # They follow from the weight, so no checkpoint holds them.
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - untyped in torchao
        """The weight `x` on its grid."""
        if self.follows:
            largest = x.detach().abs().transpose(0, self.axis).flatten(1).amax(1)
            self.scale = (largest / self.largest_code).clamp(min=torch.finfo(torch.float32).eps)
            self.zero_point = torch.zeros(len(self.scale), dtype=torch.int32, device=x.device)
        if not self.rounds:
            return x
        return rounded(x, self.along_channels(self.scale, x), None, -self.largest_code, self.largest_code)

    def along_channels(self, values: Tensor, weight: Tensor) -> Tensor:
        """One number an output channel, shaped to be broadcast against the weight."""
        return values.view(-1, *(1,) * (weight.ndim - 1 - self.axis))

    def hold(self, scale: Tensor) -> None:
        """Keep these scales, one an output channel, whatever the weight becomes."""
        self.follows = False
        self.scale = scale.detach().clone()
        self.zero_point = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)

    def held(self) -> Tensor:
        """The scales that do not follow the weight."""
        return self.scale

    def clipped(self, weight: Tensor) -> Tensor:
        """The weight within the ends of a held grid, where its codes are the same."""
        if self.follows:
            return weight
        ends = self.along_channels(self.held() * self.largest_code, weight)
        return weight.minimum(ends).maximum(-ends)

    def calculate_qparams(  # pyright: ignore[reportIncompatibleMethodOverride] - untyped in torchao
        self, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Scales and zero points, one an output channel, as torchao's conversion asks for them."""
        return self.scale, self.zero_point


_AnyQuantizer = ActivationQuantizer | WeightQuantizer | GroupedWeightQuantizer


class FakeQuantizedModel(Marked):
    """A captured graph with a quantizer on every tensor that its `Quantization` names."""

    def __init__(self, graph: fx.GraphModule, quantizers: Mapping[str, _AnyQuantizer], *, follows: bool) -> None:
        """The activations' ranges follow what they see in training mode if `follows`, else they hold."""
        super().__init__()
        self.graph = graph
        self._follows = follows
        self._quantizers = dict(quantizers)
        self.marks = {}

    def mark(self, taps: Iterable[str]) -> None:
        """Let `Taps` read at modules of the captured model: what passes there, rounded where a quantizer follows.

        Raises ModelError for a module that does nothing of its own in the graph.
        """
        for number, tap in enumerate(sorted(taps)):
            node = _tapped(self.graph, tap)
            self.graph.add_submodule(f"mark_{number}", nn.Identity())
            with self.graph.graph.inserting_after(node):
                mark = self.graph.graph.call_module(f"mark_{number}", (node,))
            node.replace_all_uses_with(mark, delete_user_cb=lambda user, mark=mark: user is not mark)
            self.marks = {**self.marks, tap: self.graph.get_submodule(f"mark_{number}")}
        self.graph.recompile()

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the model computes with its quantized tensors rounded."""
        return cast(Tensor, self.graph(*inputs))

    def train(self, mode: bool = True) -> "FakeQuantizedModel":
        """Let the activation ranges follow what they see, or hold them; the captured operators have no modes."""
        self.training = mode
        for quantizer in self._quantizers.values():
            quantizer.training = mode and self._follows
        return self

    def activation(self, name: str) -> ActivationQuantizer:
        """The quantizer of the activation called `name`."""
        return cast(ActivationQuantizer, self._quantizers[name])

    def weights(self) -> dict[str, WeightQuantizer]:
        """The quantizers of weights with one scale an output channel, by the weights' names."""
        return {name: each for name, each in self._quantizers.items() if isinstance(each, WeightQuantizer)}

    def rounded_in_order(self) -> list[str]:
        """The activation whose grid each rounding of the graph is on, in the order in which they run."""
        owners: dict[int, str] = {}
        for name, quantizer in self._quantizers.items():
            owners.setdefault(id(quantizer), name)
        called = (
            self.graph.get_submodule(str(node.target)) for node in self.graph.graph.nodes if node.op == "call_module"
        )
        return [owners[id(module)] for module in called if isinstance(module, ActivationQuantizer)]

    @contextmanager
    def rounding(self, on: bool, names: Iterable[str] | None = None) -> Generator[None, None, None]:
        """Within the block the quantizers of these names, by default all, round, or only look."""
        chosen = [self._quantizers[name] for name in (self._quantizers if names is None else names)]
        for quantizer in chosen:
            quantizer.rounds = on
        try:
            yield
        finally:
            for quantizer in chosen:
                quantizer.rounds = True

    def stop_rounding(self, names: Iterable[str]) -> None:
        """Let the quantizers of these names only look from now on."""
        for name in names:
            self._quantizers[name].rounds = False

    def replace_quantizers(self, make: Callable[["_AnyQuantizer"], "_AnyQuantizer"]) -> None:
        """Put what `make` returns in the place of each quantizer."""
        made = {id(old): make(old) for old in self._quantizers.values()}
        modules = cast(Iterable[tuple[str, nn.Module]], self.graph.named_modules(remove_duplicate=False))
        for path, module in list(modules):
            if id(module) in made:
                self.graph.set_submodule(path, made[id(module)])
        self._quantizers = {name: made[id(old)] for name, old in self._quantizers.items()}
        self.train(self.training)

    def float_state(self) -> dict[str, Tensor]:
        """The parameters and buffers of the model that was captured, by its own names."""
        quantizers = self._quantizers.values()
        own = {id(tensor) for each in quantizers for tensor in chain(each.buffers(), each.parameters())}
        return {name: tensor for name, tensor in self.graph.state_dict(keep_vars=True).items() if id(tensor) not in own}

    def trained_state(self) -> dict[str, Tensor]:
        """The same without gradients; weights end where learned grids do, which changes none of their codes."""
        state = {name: tensor.detach() for name, tensor in self.float_state().items()}
        return state | {name: quantizer.clipped(state[name]) for name, quantizer in self.weights().items()}


def fake_quantized(model: nn.Module, quantization: Quantization, inputs: Mapping[str, Tensor]) -> FakeQuantizedModel:
    """The model's graph with the quantizers that `quantization` names, in eval mode.

    Raises ModelError when a name fits no tensor of the graph. Activations named in `quantization.activations` take
    their learned grids.
    """
    graph = capture(model, inputs)
    names = tensor_names(graph)
    wanted = {*quantization.weights, *quantization.activations, *quantization.shared}
    missing = wanted - set(names.values())
    if missing:
        raise ModelError(f"quantized tensors that the model does not have: {', '.join(sorted(missing))}")
    placed = {node.name: name for node, name in names.items()}
    with quiet("torchao"):
        prepared = prepare_pt2e(graph, _NamedTensors(names, quantization))
    called = [node for node in prepared.graph.nodes if node.op == "call_module" and str(node.target) != FRONT_END]
    paths = {placed[node.args[0].name]: str(node.target) for node in called}
    for name, source in quantization.shared.items():
        prepared.set_submodule(paths[name], prepared.get_submodule(paths[source]))
    quantizers = {name: cast(_AnyQuantizer, prepared.get_submodule(path)) for name, path in paths.items()}
    for name, grid in quantization.activations.items():
        cast(ActivationQuantizer, quantizers[name]).set_range(grid)
    for name, scales in quantization.weight_scales.items():
        cast(WeightQuantizer, quantizers[name]).hold(torch.tensor(scales))
    follows = quantization.calibration.method == "min_max"
    return FakeQuantizedModel(prepared, quantizers, follows=follows).train(mode=False)


def _tapped(graph: fx.GraphModule, tap: str) -> fx.Node:
    """The node whose value a tap reads: that of the quantizer behind it, where there is one."""
    path = path_of(tap)
    inside = [node for node in graph.graph.nodes if node.op == "call_function" and _is_within(node, path)]
    if not inside:
        raise ModelError(f"the quantized model has no operator within `{path}`: tap another layer")
    node: fx.Node = inside[-1]
    if tap.endswith(INPUT):
        node = next(each for each in inside[0].all_input_nodes if each.op != "get_attr")
    (only, *others) = node.users
    return only if not others and only.op == "call_module" else node


def _is_within(node: fx.Node, path: str) -> bool:
    stack = cast(dict[str, tuple[str, Any]], node.meta.get("nn_module_stack") or {})
    return any(each == path for each, _ in stack.values())


def quantization_of(model: FakeQuantizedModel, quantization: Quantization) -> Quantization:
    """The same placement with the grids as they now stand."""
    ranges = {name: model.activation(name).range() for name in quantization.activations}
    held = {name: each for name, each in model.weights().items() if not each.follows}
    scales = {name: tuple(map(float, weight.held())) for name, weight in held.items()}
    return quantization.model_copy(update={"activations": ranges, "weight_scales": scales})


def converted(model: FakeQuantizedModel, inputs: Mapping[str, Tensor]) -> fx.GraphModule:
    """The graph with explicit quantize and dequantize operators and stored weights, as the ONNX exporter reads it."""
    # torch warns of its own old graphs when they are copied.
    with quiet("torchao"):
        fresh = copy.deepcopy(model).train(mode=False)
        with torch.no_grad():
            fresh(*inputs.values())  # the weight scales follow the weights on each call
        store_weights(fresh.graph)
        _replace_targets(fresh.graph, BATCH_NORM, _batch_norm)
        graph = convert_pt2e(fresh.graph, fold_quantize=True)
        _replace_targets(graph, _batch_norm, BATCH_NORM)
        return graph


BATCH_NORM = torch.ops.aten.batch_norm.default


def _batch_norm(*arguments: Any) -> Tensor:
    """A norm that torchao does not know for one.

    Where it finds one, it captures some hundred patterns of its own training flow to fold norms that are written so,
    which takes 20 seconds; those that can be folded are folded before `quantize` places anything.
    """
    return BATCH_NORM(*arguments)


def _replace_targets(graph: fx.GraphModule, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for node in graph.graph.nodes:
        if node.target is old:
            node.target = new
    graph.recompile()


class _NamedTensors(Quantizer):
    """Puts one quantizer behind each named tensor, so that every reader of the tensor sees the same codes."""

    def __init__(self, names: Mapping[fx.Node, str], quantization: Quantization) -> None:
        super().__init__()
        self._names = {node.name: name for node, name in names.items()}
        self._quantization = quantization

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Mark the outputs of the nodes that make the named tensors."""
        for node in model.graph.nodes:
            name = self._names.get(node.name)
            if name in self._quantization.weights:
                node.meta["quantization_annotation"] = _annotation(self._weight_quantizer(node))
            elif name in self._quantization.activations or name in self._quantization.shared:
                make = cast(Any, ActivationQuantizer).with_args(grids=self._quantization.grids)
                node.meta["quantization_annotation"] = _annotation(make)
        return model

    def _weight_quantizer(self, weight: fx.Node) -> Any:
        bits, group_size = self._quantization.weight_bits, self._quantization.group_size
        if group_size is not None:
            return cast(Any, GroupedWeightQuantizer).with_args(bits=bits, group_size=group_size)
        return cast(Any, WeightQuantizer).with_args(bits=bits, axis=_channel_axis(weight))

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check: names that fit no tensor were refused before."""


def _channel_axis(weight: fx.Node) -> Literal[0, 1]:
    """Of a weight's output channels."""
    return 1 if any(operator_name(user).startswith("conv_transpose") for user in weight.users) else 0


def _annotation(make: Any) -> QuantizationAnnotation:
    # torchao reads dtype and range from the quantizer that `make` returns; the specification's own must agree in kind.
    spec = QuantizationSpec(dtype=torch.int8, observer_or_fake_quant_ctr=make)
    return QuantizationAnnotation(output_qspec=spec, _annotated=True)
