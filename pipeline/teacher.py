"""The run's frozen teacher."""

from collections.abc import Collection
from copy import deepcopy

import torch
from torch import Tensor, nn

from .artifact import Artifact
from .data import Batch
from .taps import Outputs, outputs_of
from .training import TrainingContext, move


class Teacher:
    """A frozen copy of the teacher's model, shared by every stage of a run.

    Without augmentation a sample's logits never change, so one pass over the training split, in its own order,
    serves every epoch of every stage; its result does not depend on which stage asks first.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._model: nn.Module | None = None
        self._train_logits: Tensor | None = None

    def model(self, context: TrainingContext) -> nn.Module:
        """The teacher on the run's device, in eval mode, asking for no gradients."""
        if self._model is None:
            self._model = deepcopy(self.artifact.model).eval().requires_grad_(requires_grad=False)
            move(self._model, context.device, torch.channels_last)
        return self._model

    def outputs(self, batch: Batch, taps: Collection[str], context: TrainingContext) -> Outputs:
        """Logits and what flows at the taps for a training batch on the device."""
        if not taps:
            return Outputs(self.logits(batch, context), {})
        return self.live_outputs(batch, taps, context)

    @torch.no_grad()
    def live_outputs(self, batch: Batch, taps: Collection[str], context: TrainingContext) -> Outputs:
        """The same from a forward of just now, whatever is stored."""
        with context.autocast():
            return outputs_of(self.model(context), batch.inputs, taps)

    def logits(self, batch: Batch, context: TrainingContext) -> Tensor:
        """The teacher's outputs for a training batch on the device, shape (B, classes), in float32."""
        if context.data.train.augmented:
            return self._forward(batch, context)
        if self._train_logits is None:
            batches = context.data.train.batches(context.data.batch_size)
            self._train_logits = torch.cat([self._forward(context.to_device(each), context) for each in batches])
        return self._train_logits[batch.index.to(context.device)]

    @torch.no_grad()
    def _forward(self, batch: Batch, context: TrainingContext) -> Tensor:
        with context.autocast():
            return self.model(context)(*batch.inputs.values()).float()
