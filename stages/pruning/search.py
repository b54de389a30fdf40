"""The smallest cut that meets a budget, in steps of whole blocks of channels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ...pipeline.blueprint import Resize, layer_sizes
from ...pipeline.cost import macs_by_layer, num_parameters
from .blocks import Block
from .channels import CutError, Kept, cut
from .groups import Grouping, kept_channels


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
    kept: Kept
    cost: Cost


class Search:
    """Cuts of one model along one order of blocks."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        grouping: Grouping,
        ordered: Sequence[Block],
        uncut: Cost | None = None,
    ) -> None:
        """Budgets are shares of `uncut`; of the model itself unless it was cut before."""
        self.model = model
        self.grouping = grouping
        self.blocks = tuple(ordered)
        self.uncut = uncut or cost(model, inputs, grouping.outputs)
        self._inputs = inputs

    def along(self, ordered: Sequence[Block]) -> "Search":
        """The same search in another order."""
        return Search(self.model, self._inputs, self.grouping, ordered, self.uncut)

    @property
    def num_blocks(self) -> int:
        """How many blocks there are to remove."""
        return len(self.blocks)

    def cut(self, count: int) -> Cut:
        """The model without the first `count` blocks."""
        return self.without(range(count))

    def without(self, positions: Iterable[int]) -> Cut:
        """The model without the blocks at these places of the order."""
        gone = [self.blocks[position] for position in positions]
        kept = kept_channels(self.model, ((block.group, block.units) for block in gone))
        model, edit = cut(self.model, kept)
        try:
            costs = cost(model, self._inputs, self.grouping.outputs)
        except Exception as error:
            raise CutError(
                f"the cut network does not run, as where code holds sizes: {error}. "
                "Mend: `ignore` the layers that this code is about"
            ) from error
        return Cut(model, edit, kept, costs)

    def smallest(self, measure: str, share: float) -> Cut | None:
        """The cut of the fewest blocks whose `measure` is at most `share` of the uncut model's; None if none is."""
        count = self.fewest(measure, share)
        return None if count is None else self.cut(count)

    def fewest(self, measure: str, share: float) -> int | None:
        """How many blocks that cut is without.

        The cost falls with every block, so a bisection over their number finds it in a handful of trials.
        """
        best: int | None = None
        low, high = 0, len(self.blocks)
        while low <= high:
            middle = (low + high) // 2
            if self.cut(middle).cost.share_of(self.uncut)[measure] <= share:
                best, high = middle, middle - 1
            else:
                low = middle + 1
        return best


def layer_facts(model: nn.Module, uncut: Cost, found: Cut) -> list[dict[str, str | int]]:
    """What each layer had and has, for the report."""
    before, after = layer_sizes(model), layer_sizes(found.model)
    return [
        {
            "path": path,
            "channels_before": before[path].out_channels,
            "channels_after": after[path].out_channels,
            "macs_before": macs_before,
            "macs_after": found.cost.macs_by_layer[path],
        }
        for path, macs_before in uncut.macs_by_layer.items()
        if path in before
    ]
