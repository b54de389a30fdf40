"""The number that a task's models are judged by: what it is called, and which way is better."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Metric(BaseModel):
    """A number made of one value a sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=40)]
    """As reports write it within a sentence, such as ``accuracy`` or ``RMSE``."""
    higher_is_better: bool
    kind: Literal["share", "mean", "root_mean"]
    """`share`: of the samples, whose values are 0 or 1; `mean`: of the values; `root_mean`: the square root of that."""

    def of(self, mean: float) -> float:
        """The metric, from the mean of the samples' values."""
        return math.sqrt(mean) if self.kind == "root_mean" else mean

    def improves(self, change: float) -> bool:
        """Whether a change in this direction is for the better; none is not."""
        return change != 0 and (change > 0) == self.higher_is_better


ACCURACY = Metric(name="accuracy", higher_is_better=True, kind="share")
RMSE = Metric(name="RMSE", higher_is_better=False, kind="root_mean")
