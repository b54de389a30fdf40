"""Training a model on the task alone; as the first stage it makes the run's teacher."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import ClassVar, Literal, Self

from ..pipeline.artifact import Artifact
from ..pipeline.training import Schedule, TaskObjective, fit
from .stage import Context, Stage


class Train(Stage, Schedule, frozen=True, extra="forbid"):
    """Train on the labels alone: as the first stage of a recipe without teacher weights, it makes the teacher."""

    keeps_sharing: ClassVar[bool] = True

    stage: Literal["train"] = "train"

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """A trained copy of the artifact."""
        model = deepcopy(artifact.model)
        fit(model, TaskObjective(context), self, context)
        return replace(artifact, model=model)

    def order_problem(self, earlier: Sequence[Stage]) -> str | None:
        """Training in float would leave the quantizers' grids behind."""
        if self.is_quantized_by(earlier):
            return "trains in float what `quantize` has quantized; put it before, or lengthen quantize's `recover`"
        return None

    def untrained(self) -> Self:
        """The same stage for no epoch."""
        return self.model_copy(update={"epochs": 0})
