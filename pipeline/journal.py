"""What a step tells the report: facts in the stage's own words, and the curve of its training."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class CurvePoint(BaseModel):
    """The mean over one epoch of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: float
    """From the beginning of the step, which may hold several trainings, one after the other."""
    loss: float
    """The sum of the weighted terms."""
    terms: dict[str, float]
    """Each term of the loss, weighted as it was trained on."""
    gradient_shares: dict[str, float] | None = None
    """Each term's share of the gradient's length, at one step of the epoch; None where it was not looked at."""
    validation: float | None = None
    """The task's metric on the validation split; None without one."""
    learning_rate: float
    """The rate of the epoch's last step."""


class Journal(BaseModel):
    """Written to by the stage while it runs, kept beside its artifact, read by the report."""

    model_config = ConfigDict(extra="forbid")

    facts: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    curve: list[CurvePoint] = Field(default_factory=list[CurvePoint])

    def fact(self, name: str, value: Any) -> None:
        """Record something the stage decided or found; plain JSON values, such as a list of one dict a layer."""
        self.facts[name] = value
