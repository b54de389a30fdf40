"""The one place that knows Torch-Pruning: groups of coupled channels, their importance, and the cut itself."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import LayerSize, Resize
from .selection import ignored_paths, shared_paths

Criterion = Literal["l1", "l2", "taylor"]
Side = Literal["out", "in"]

RESIZABLE = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
"""What a blueprint can resize. Layer and group norms mix channels: without some, they compute something else."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that stand or fall together, named by the layer that Torch-Pruning starts from."""

    root: str
    layers: tuple[str, ...]
    """All layers and norms whose output channels these are."""
    scores: tuple[float, ...]
    """The importance of each channel; of each channel in every block of a grouped convolution, if there is one."""
    blocks: int
    """How many equal blocks a grouped convolution splits the channels into; each has to lose the same ones."""
    step: int
    """Channels are lost in multiples of this in every block."""
    kept_because: str | None
    """Why none may go; None where some may."""

    def channels(self, lost: Iterable[int]) -> list[int]:
        """The root's output channels that go when each block loses the channels `lost`."""
        return sorted(block * len(self.scores) + channel for channel in lost for block in range(self.blocks))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A model that lost channels, and the claim which of the original ones are left in each layer."""

    model: nn.Module
    kept_out: Mapping[str, tuple[int, ...]]
    kept_in: Mapping[str, tuple[int, ...]]
    """Linear layers and convolutions only; by feature, also behind a flattening."""

    def edit(self) -> Resize:
        """The recorded change: the new size of every layer that lost something."""
        return Resize(
            layers={path: _size(self.model.get_submodule(path)) for path in _in_order(self.model, {*self.kept_out, *self.kept_in})}
        )


@dataclass
class _Claim:
    original: dict[tuple[str, Side], list[int]] = field(default_factory=dict[tuple[str, Side], list[int]])

    def lose(self, path: str, side: Side, size: int, positions: Sequence[int]) -> None:
        left = self.original.setdefault((path, side), list(range(size)))
        gone = set(positions)
        self.original[path, side] = [index for position, index in enumerate(left) if position not in gone]

    def of(self, side: Side) -> dict[str, tuple[int, ...]]:
        return {path: tuple(left) for (path, other), left in self.original.items() if other == side}


def groups(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    criterion: Criterion,
    loss: Callable[[nn.Module], Iterator[Tensor]],
    *,
    round_to: int,
    ignore: Sequence[str],
) -> list[Group]:
    """All groups of the model in its own order, scored on a trainable copy; `loss` yields losses for `taylor`'s gradients."""
    scored = trainable_copy(model)
    ignored, shared = ignored_paths(model, ignore), shared_paths(model)
    graph = _graph(scored, inputs)
    if criterion == "taylor":
        for term in loss(scored):
            term.backward()
    importance = _importance(criterion)
    paths = {module: path for path, module in scored.named_modules()}
    found: list[Group] = []
    for raw in graph.get_all_groups():
        scores = importance(raw)
        layers = tuple(dict.fromkeys(paths[dep.target.module] for dep, _ in raw if _cuts_outputs(graph, dep, paths)))
        if scores is None or not layers:
            continue
        blocks = _blocks(graph, raw)
        per_block = cast(Tensor, scores).reshape(blocks, -1).mean(0)
        step = math.lcm(round_to, blocks) // blocks
        reason = _reason_to_keep(graph, raw, paths, layers, ignored, shared)
        if reason is None and len(per_block) <= step:
            reason = f"has no more than {step * blocks} channels, the multiple they are rounded to"
        found.append(
            Group(
                root=layers[0],
                layers=layers,
                scores=tuple(cast(list[float], per_block.tolist())),
                blocks=blocks,
                step=step,
                kept_because=reason,
            )
        )
    return found


def cut(model: nn.Module, inputs: Mapping[str, Tensor], lost: Mapping[str, Sequence[int]]) -> Cut:
    """A trainable copy without the `lost` output channels, by group root, and without all that hangs on them."""
    pruned = trainable_copy(model)
    graph = _graph(pruned, inputs)
    paths = {module: path for path, module in pruned.named_modules()}
    claim = _Claim()
    for root, channels in lost.items():
        module = pruned.get_submodule(root)
        pruner = graph.get_pruner_of_module(module)
        group = graph.get_pruning_group(module, pruner.prune_out_channels, list(channels))
        for dep, positions in group:
            layer = dep.target.module
            path = paths.get(layer)
            if path is None or not isinstance(layer, RESIZABLE):
                continue
            if _is_depthwise(layer) or isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                claim.lose(path, "out", graph.get_out_channels(layer), positions)
            elif graph.is_out_channel_pruning_fn(dep.handler):
                claim.lose(path, "out", graph.get_out_channels(layer), positions)
            else:
                claim.lose(path, "in", graph.get_in_channels(layer), positions)
        group.prune()
    return Cut(model=pruned, kept_out=claim.of("out"), kept_in=claim.of("in"))


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose every parameter asks for a gradient: Torch-Pruning silently skips frozen ones."""
    copy = deepcopy(model).eval().requires_grad_(requires_grad=True)
    copy.zero_grad(set_to_none=True)
    return copy


@torch.enable_grad()
def _graph(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    import torch_pruning  # pyright: ignore[reportMissingTypeStubs]

    def forward(module: nn.Module, tensors: tuple[Tensor, ...]) -> Any:
        return module(*tensors)

    with warnings.catch_warnings():
        # It warns of parameters outside of known layers; groups that hold one are not cut at all here.
        warnings.simplefilter("ignore")
        graph = cast(Any, torch_pruning).DependencyGraph()
        return graph.build_dependency(model, tuple(inputs.values()), forward_fn=forward)


def _importance(criterion: Criterion) -> Callable[[Any], Tensor | None]:
    from torch_pruning.pruner import importance  # pyright: ignore[reportMissingTypeStubs]

    untyped = cast(Any, importance)
    if criterion == "taylor":
        return untyped.GroupTaylorImportance()
    return untyped.GroupMagnitudeImportance(p=1 if criterion == "l1" else 2)


def _cuts_outputs(graph: Any, dep: Any, paths: Mapping[nn.Module, str]) -> bool:
    return dep.target.module in paths and bool(graph.is_out_channel_pruning_fn(dep.handler)) and isinstance(
        dep.target.module, RESIZABLE
    )


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups == layer.out_channels == layer.in_channels > 1


def _blocks(graph: Any, group: Any) -> int:
    """The number of equal blocks that grouped convolutions, as readers or as writers, split the group's channels into."""
    counts = [
        dep.target.module.groups
        for dep, _ in group
        if isinstance(dep.target.module, nn.Conv1d | nn.Conv2d) and not _is_depthwise(dep.target.module)
    ]
    return math.lcm(*counts) if counts else 1


def _reason_to_keep(
    graph: Any,
    group: Any,
    paths: Mapping[nn.Module, str],
    layers: Sequence[str],
    ignored: set[str],
    shared: set[str],
) -> str | None:
    channels = len(group[0].idxs)
    for dep, positions in group:
        target = dep.target.module
        if not dep.target.outputs and bool(graph.is_out_channel_pruning_fn(dep.handler)):
            return "they are the model's outputs"
        if isinstance(target, nn.Parameter):
            return "a parameter outside of any layer goes with them"
        if target in paths and type(target) not in RESIZABLE:
            return f"`{paths[target]}`, a {type(target).__name__}, goes with them and cannot be resized"
        if isinstance(target, nn.Conv1d | nn.Conv2d) and target.groups > 1 and len(positions) != channels:
            return f"the grouped convolution `{paths[target]}` reads them beside others"
        if target in paths and paths[target] in shared:
            return f"`{paths[target]}` shares its weight with another layer"
    if any(path in ignored for path in layers):
        return "named in `ignore`"
    first = group[0].dep
    alone = graph.get_pruning_group(first.target.module, first.handler, [0])
    return None if len(alone[0].idxs) == 1 else "they hang on other channels of the same layer"


def _size(layer: nn.Module) -> LayerSize:
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return LayerSize(in_channels=layer.in_channels, out_channels=layer.out_channels, groups=layer.groups)
    if isinstance(layer, nn.Linear):
        return LayerSize(in_channels=layer.in_features, out_channels=layer.out_features)
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return LayerSize(in_channels=0, out_channels=layer.num_features)


def _in_order(model: nn.Module, paths: set[str]) -> list[str]:
    return [path for path, _ in model.named_modules() if path in paths]
