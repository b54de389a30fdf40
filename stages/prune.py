"""Pruning: whole channels leave, with everything that hangs on them, until the network fits a budget."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ..pipeline.artifact import Artifact
from ..pipeline.cost import macs, num_channels, num_parameters
from ..pipeline.errors import StageError
from ..pipeline.seeding import generator
from .pruning.budget import bites, lost_channels, smallest_sufficient
from .pruning.graph import Criterion, Cut, Group, cut, groups
from .pruning.proof import doubt
from .recovery import Recovery, recover
from .stage import Context, Stage

PROOF_SAMPLES = 16
GRADIENT_BATCHES = 4

Share = Annotated[float, Field(gt=0, lt=1)]
Measure = Literal["channels", "macs", "parameters"]


class Budget(BaseModel):
    """What may be left: a share of one measure of the model as the stage finds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Share | None = None
    """Of the output channels of all convolutions and linear layers."""
    macs: Share | None = None
    """Of the multiply-accumulates for one sample."""
    parameters: Share | None = None
    """Of the elements of all parameters."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of `channels`, `macs` and `parameters`, such as `keep: {macs: 0.5}`")
        return self

    @property
    def measure(self) -> Measure:
        """What the budget is counted in."""
        if self.channels is not None:
            return "channels"
        return "macs" if self.macs is not None else "parameters"

    @property
    def share(self) -> float:
        """How much of it may be left."""
        share = getattr(self, self.measure)
        assert isinstance(share, float)
        return share


class Prune(Stage):
    """Cut the least important channels until a budget of MACs, parameters or channels is met, and distil again."""

    stage: Literal["prune"] = "prune"
    keep: Budget
    """What may be left, such as `{macs: 0.5}`."""
    criterion: Criterion = "l1"
    """Importance by magnitude of the weights, or by `taylor`: weight times gradient of the task's loss."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Channel counts are cut to multiples of this, which kernels run fuller on."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that lose no output channels, such as `layer1.*`."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact at or just below its budget, proven to be a part of the original, and trained on."""
        original, inputs = artifact.model, context.data.example()
        found = groups(
            original,
            inputs,
            self.criterion,
            lambda model: _losses(model, context),
            round_to=self.round_to,
            ignore=self.ignore,
        )
        pruned = self._within_budget(original, found, inputs, context)
        edit = pruned.edit()
        blueprint = artifact.blueprint.with_edit(edit)
        model = blueprint.build().eval()
        model.load_state_dict(pruned.model.state_dict())
        _record(original, model, found, context)
        return recover(replace(artifact, model=model, blueprint=blueprint), self.recover, context)

    def untrained(self) -> Self:
        """The same cut by weights alone, not trained on."""
        update = {"criterion": "l1", "recover": self.recover.model_copy(update={"epochs": 0})}
        return self.model_copy(update=update)
