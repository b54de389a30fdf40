"""The smallest cut that meets a budget, in steps of whole blocks of channels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

from torch import Tensor, nn

from ...pipeline.blueprint import Resize, layer_sizes
from ...pipeline.cost import macs_by_layer, num_parameters
from .channels import Channels, cut
from .groups import ChannelGroup, Grouping, kept_channels


@dataclass(frozen=True)
class Block:
    """Channels of one group that are removed in one step, so that counts stay multiples of what kernels like."""

    group: ChannelGroup
    units: tuple[int, ...]
    price: float
    """The share of its group's importance that is lost once it is gone."""


def blocks(groups: Iterable[ChannelGroup], round_to: int) -> list[Block]:
    """All blocks of all groups, the cheapest first; each group keeps its best `round_to` channels or more.

    By their price, groups of even importance shrink at an even pace, those with idle channels faster, and none
    collapses before the others. A group whose count is no multiple of `round_to` loses the odd channels first.
    """
    found = [block for group in groups for block in _blocks_of(group, round_to)]
    return sorted(found, key=lambda block: block.price)  # stable: the price rises along a group's own blocks


def _blocks_of(group: ChannelGroup, round_to: int) -> list[Block]:
    step = round_to // gcd(round_to, group.parts)
    order = sorted(range(len(group.scores)), key=lambda unit: group.scores[unit])
    total, lost = sum(group.scores), 0.0
    found: list[Block] = []
    start, size = 0, len(order) % step or step
    while len(order) - start - size >= step:
        units = tuple(order[start : start + size])
        lost += sum(group.scores[unit] for unit in units)
        start, size = start + size, step
        found.append(Block(group, units, lost / total if total > 0 else start / len(order)))
    return found


@dataclass(frozen=True)
class Cost:
    """What a budget can be a share of."""

    channels: int
    """Outputs of all convolutions and linear layers but the last, whose count the classes set."""
    macs: int
    parameters: int
    macs_by_layer: Mapping[str, int]

    def share_of(self, whole: "Cost") -> dict[str, float]:
        """Each as a share of the same of `whole`."""
        return {
            "channels": self.channels / max(whole.channels, 1),
            "macs": self.macs / max(whole.macs, 1),
            "parameters": self.parameters / max(whole.parameters, 1),
        }


def cost(model: nn.Module, inputs: Mapping[str, Tensor], outputs: frozenset[str]) -> Cost:
    """The cost of a model whose outputs the layers `outputs` write."""
    by_layer = macs_by_layer(model, inputs)
    sizes = layer_sizes(model)
    channels = sum(sizes[path].out_channels for path in by_layer if path in sizes and path not in outputs)
    return Cost(channels, sum(by_layer.values()), num_parameters(model), by_layer)


@dataclass(frozen=True)
class Cut:
    """A cut model, what it keeps, and what that costs."""

    model: nn.Module
    edit: Resize
    kept: Mapping[str, Channels]
    cost: Cost


class Search:
    """Cuts of one model along one order of blocks."""

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Tensor], grouping: Grouping, ordered: Sequence[Block]
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._outputs = grouping.outputs
        self._blocks = ordered
        self.uncut = cost(model, inputs, grouping.outputs)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are to remove."""
        return len(self._blocks)

    def cut(self, count: int) -> Cut:
        """The model without the first `count` blocks."""
        kept = kept_channels(self._model, ((block.group, block.units) for block in self._blocks[:count]))
        model, edit = cut(self._model, kept)
        return Cut(model, edit, kept, cost(model, self._inputs, self._outputs))

    def smallest(self, measure: str, share: float) -> Cut | None:
        """The cut of the fewest blocks whose `measure` is at most `share` of the uncut model's; None if none is.

        The cost falls with every block, so a bisection over their number finds it in a handful of trials.
        """
        best: Cut | None = None
        low, high = 0, len(self._blocks)
        while low <= high:
            middle = (low + high) // 2
            trial = self.cut(middle)
            if trial.cost.share_of(self.uncut)[measure] <= share:
                best, high = trial, middle - 1
            else:
                low = middle + 1
        return best
