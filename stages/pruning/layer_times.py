"""How long each layer takes by itself, by the channels that it reads and writes."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache, cached_property
from math import ceil, lcm
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter
from torch import Tensor, nn

from ...pipeline.blueprint import LayerSize, Resize, layer_sizes
from ...pipeline.quantization import ActivationRange, Quantization, capture
from ...pipeline.side_by_side import Part, SideBySide
from ..stage import Context

COUNTS_AT_MOST = 8
"""Channel counts that are timed along one side of a layer; between them a time is on the line of its neighbours."""

Placed = Callable[[SideBySide, Mapping[str, Tensor]], Quantization]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Frozen):
    """One size of a layer."""

    reads: int
    writes: int
    ms: float


class LayerTimes(_Frozen):
    """Equal layers at the sizes that were timed: fewer outputs with all inputs, fewer inputs with all outputs, both."""

    layers: tuple[str, ...]
    calls: int
    """How often each runs for one sample."""
    reads: int
    writes: int
    depthwise: bool
    """Whether it reads as many channels as it writes, or a fixed part of them."""
    points: tuple[Point, ...]

    def ms(self, reads: int, writes: int) -> float:
        """All calls of one layer of this size.

        What a kernel does along each side is taken as it was measured. The two sides together save a little less than
        each alone: that part is bilinear, as multiply-accumulates are, and follows from the smallest size.
        """
        by_writes = _on_line(self._by_writes, writes)
        if self.depthwise:
            return self.calls * by_writes
        gone = (self.reads - reads) * (self.writes - writes)
        together = by_writes + _on_line(self._by_reads, reads) - self._whole_ms + self._per_pair_ms * gone
        return self.calls * max(together, 0.0)

    @cached_property
    def _by_writes(self) -> list[tuple[int, float]]:
        return sorted((each.writes, each.ms) for each in self.points if self.depthwise or each.reads == self.reads)

    @cached_property
    def _by_reads(self) -> list[tuple[int, float]]:
        return sorted((each.reads, each.ms) for each in self.points if each.writes == self.writes)

    @property
    def _whole_ms(self) -> float:
        return self._by_writes[-1][1]

    @cached_property
    def _per_pair_ms(self) -> float:
        corners = [each for each in self.points if each.reads < self.reads and each.writes < self.writes]
        if self.depthwise or not corners:
            return 0.0
        (corner,) = corners
        sides = _on_line(self._by_writes, corner.writes) + _on_line(self._by_reads, corner.reads) - self._whole_ms
        return (corner.ms - sides) / ((self.reads - corner.reads) * (self.writes - corner.writes))


class Table:
    """The times of all layers of a model that can lose channels."""

    def __init__(self, rows: Iterable[LayerTimes]) -> None:
        self.rows = tuple(rows)
        self._by_layer = {layer: row for row in self.rows for layer in row.layers}
        self.ms = cache(self._ms)
        """What a layer takes that reads and writes so many channels; nothing for one that is not in the table."""

    def __contains__(self, layer: str) -> bool:
        return layer in self._by_layer

    def _ms(self, layer: str, reads: int, writes: int) -> float:
        return self._by_layer[layer].ms(reads, writes) if layer in self._by_layer else 0.0


def table_of(
    model: nn.Module,
    least: Mapping[str, tuple[int, int]],
    round_to: int,
    quantization: Quantization | None,
    context: Context,
    name: str,
) -> Table:
    """Times of the layers that end with `least` (read, written) channels at the fewest; made once under `name`.

    In float, or in int8 where the model is quantized, as the engines that judge the budget.
    """
    times = TypeAdapter(list[LayerTimes])

    def measure() -> JsonValue:
        found = _measured(_planned(model, least, round_to, quantization, context), quantization, context)
        return times.dump_python(found, mode="json")

    return Table(times.validate_python(context.decided(name, measure)))


class _Planned(_Frozen):
    """Equal layers, and the sizes to time."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    layers: tuple[str, ...]
    calls: int
    size: LayerSize
    in_float: bool
    sizes: tuple[tuple[int, int], ...]
    parts: tuple[Part, ...]


def _planned(
    model: nn.Module,
    least: Mapping[str, tuple[int, int]],
    round_to: int,
    quantization: Quantization | None,
    context: Context,
) -> list[_Planned]:
    sizes = {path: size for path, size in layer_sizes(model).items() if size.in_channels and path in least}
    floats = () if quantization is None else quantization.float_layers
    equal: dict[tuple[object, ...], _Planned] = {}
    for path, (shape, calls) in seen_inputs(model, sizes, context).items():
        size, layer = sizes[path], model.get_submodule(path)
        in_float = any(path == each or path.startswith(f"{each}.") for each in floats)
        key = (Part(layer, shape).key, calls, least[path], in_float)
        if key in equal:
            equal[key] = equal[key].model_copy(update={"layers": (*equal[key].layers, path)})
            continue
        counts = _counts(size, *least[path], round_to)
        bare = deepcopy(layer).to("meta")
        parts = tuple(_resized(bare, size, shape, *each) for each in counts)
        equal[key] = _Planned(
            layers=(path,), calls=calls, size=size, in_float=in_float, sizes=tuple(counts), parts=parts
        )
    return list(equal.values())


def _measured(planned: Sequence[_Planned], quantization: Quantization | None, context: Context) -> list[LayerTimes]:
    times: dict[str, float] = {}
    for in_float in (False, True):
        parts = [part for each in planned if each.in_float == in_float for part in each.parts]
        placed = None if in_float or quantization is None else placed_as(quantization)
        keys = (f"{in_float} {part.key}" for part in parts)
        times |= dict(zip(keys, context.bench.part_ms(parts, placed) if parts else (), strict=True))
    return [
        LayerTimes(
            layers=each.layers,
            calls=each.calls,
            reads=each.size.in_channels,
            writes=each.size.out_channels,
            depthwise=_is_depthwise(each.size),
            points=tuple(
                Point(reads=reads, writes=writes, ms=times[f"{each.in_float} {part.key}"])
                for (reads, writes), part in zip(each.sizes, each.parts, strict=True)
            ),
        )
        for each in planned
    ]


def placed_as(quantization: Quantization) -> Placed:
    """Quantizers on parts by the rules that placed those of the model; no time depends on the grids."""
    from ..quantization.placement import place

    def placed(parts: SideBySide, inputs: Mapping[str, Tensor]) -> Quantization:
        placement = place(capture(parts, inputs))
        return Quantization(
            weight_bits=quantization.weight_bits,
            weights=placement.weights,
            activations=dict.fromkeys(placement.activations, ActivationRange.spanning(-4.0, 4.0)),
            shared=placement.shared,
        )

    return placed


@torch.no_grad()
def seen_inputs(model: nn.Module, paths: Iterable[str], context: Context) -> dict[str, tuple[tuple[int, ...], int]]:
    """The shape of the tensor that each module read when the model ran on one sample, and how often it ran.

    Modules that were not called by themselves are left out.
    """
    seen: dict[str, tuple[tuple[int, ...], int]] = {}

    def remember(path: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            first: Tensor = next(iter((*arguments, *keywords.values())))
            seen[path] = (tuple(first.shape), seen[path][1] + 1 if path in seen else 1)

        return hook

    observed = deepcopy(model).eval()
    for path in paths:
        observed.get_submodule(path).register_forward_pre_hook(remember(path), with_kwargs=True)
    observed(*context.data.example(1).values())
    return {path: seen[path] for path in paths if path in seen}


def _counts(size: LayerSize, least_read: int, least_written: int, round_to: int) -> list[tuple[int, int]]:
    """The sizes to time, the whole layer first."""
    if _is_depthwise(size):
        per_read = size.out_channels // size.in_channels
        written = _ladder(size.out_channels, least_written, lcm(round_to, per_read))
        return [(count // per_read, count) for count in written]
    read, written = (
        # Groups stay as many as they are, so counts are multiples of them.
        _ladder(most, ceil(least / size.groups) * size.groups, lcm(round_to, size.groups))
        for most, least in ((size.in_channels, least_read), (size.out_channels, least_written))
    )
    sides = [(size.in_channels, count) for count in written] + [(count, size.out_channels) for count in read[1:]]
    corner = [(read[-1], written[-1])] if len(read) > 1 and len(written) > 1 else []
    return [*sides, *corner]


def _ladder(most: int, least: int, step: int) -> list[int]:
    """From `most` down to `least` by multiples of `step`: all of them, or COUNTS_AT_MOST at even distances."""
    between = range((most - 1) // step * step, least, -step)
    kept = min(len(between), COUNTS_AT_MOST - 2)
    chosen = [between[(2 * number + 1) * len(between) // (2 * kept)] for number in range(kept)]
    return list(dict.fromkeys([most, *chosen, least]))


def _resized(layer: nn.Module, size: LayerSize, shape: tuple[int, ...], reads: int, writes: int) -> Part:
    groups = reads if _is_depthwise(size) else size.groups
    holder = nn.Sequential(layer)
    Resize(layers={"0": LayerSize(in_channels=reads, out_channels=writes, groups=groups)}).apply(holder)
    axis = len(shape) - 1 if isinstance(layer, nn.Linear) else 1
    return Part(holder[0], (*shape[:axis], shape[axis] * reads // size.in_channels, *shape[axis + 1 :]))


def _is_depthwise(size: LayerSize) -> bool:
    return size.groups == size.in_channels > 1


def _on_line(points: Sequence[tuple[int, float]], count: int) -> float:
    after = min(max(bisect_left([each for each, _ in points], count), 1), len(points) - 1)
    if len(points) == 1:
        return points[0][1]
    (low, at_low), (high, at_high) = points[after - 1], points[after]
    return at_low + (at_high - at_low) * (count - low) / (high - low)
