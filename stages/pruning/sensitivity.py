"""How the loss and the metric suffer when one group of channels alone is cut."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import nn

from ..judgement import SAMPLES, judged, sampled
from ..stage import Context
from .blocks import Block
from .channels import cut
from .groups import kept_channels

DEPTHS = (0.25, 0.5, 0.75, 1.0)
"""How far each group is cut, as shares of what it can lose."""


class Sensitivity(BaseModel):
    """One group, cut to one depth, with everything else left whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    """The group: the first of the layers that lose channels."""
    removed: float
    """The share of its channels that is gone."""
    loss_rise: float
    """The task's mean loss on training samples, minus that of the whole model; nothing is trained in between."""
    metric: float
    """The task's metric on the samples."""


def sensitivities(model: nn.Module, ordered: Sequence[Block], context: Context) -> list[Sensitivity]:
    """Each group of the blocks at each of DEPTHS, on training samples that validation never sees."""
    by_group: dict[str, list[Block]] = {}
    for block in ordered:
        by_group.setdefault(block.group.name, []).append(block)
    samples = list(sampled(context, SAMPLES, context.data.batch_size, "sensitivity of channels"))
    whole = judged(model.to(context.device), samples, context).loss
    model.to("cpu")
    found: list[Sensitivity] = []
    for layer, own in by_group.items():
        for count in sorted({max(1, round(depth * len(own))) for depth in DEPTHS}):
            kept = kept_channels(model, ((block.group, block.units) for block in own[:count]))
            alone = judged(cut(model, kept)[0].to(context.device).eval(), samples, context)
            removed = sum(len(block.units) for block in own[:count]) / own[0].group.num_units
            found.append(Sensitivity(layer=layer, removed=removed, loss_rise=alone.loss - whole, metric=alone.metric))
    return found
