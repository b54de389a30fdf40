"""What a stage may ask of the target while it still decides: which of two models has the faster engine there."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:  # the process that runs an engine reads this module, and imports no torch
    from torch import Tensor, nn

    from .artifact import Artifact

Verdict = Literal["faster", "slower", "no significant difference"]
Aim = Literal["speed", "size"]
"""What a compression is held to: a faster engine, or a smaller file of it."""


class Beside(BaseModel):
    """A candidate's engine beside a baseline's, built the same way and timed in turns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float
    """The baseline's p50 over the candidate's: above 1, the candidate is faster."""
    low: float
    high: float
    """The 95 % interval of the ratio."""
    verdict: Verdict
    baseline_ms: float
    candidate_ms: float
    baseline_bytes: int
    candidate_bytes: int

    @property
    def share(self) -> float:
        """The candidate's p50 as a share of the baseline's."""
        return 1 / self.ratio

    def __str__(self) -> str:
        return (
            f"{self.baseline_ms:.3g} → {self.candidate_ms:.3g} ms, {self.ratio:.2f}x "
            f"({self.low:.2f} to {self.high:.2f}), {self.verdict}"
        )


class Bench(Protocol):
    """Builds and times engines for the run's first target, at its first batch size.

    A quantized artifact gets an engine of its scheme, any other an fp32 one: those that the step's own report is about.
    Nothing that is built here stays.
    """

    @property
    def label(self) -> str:
        """What is timed, in words, such as ``onnxruntime cpu, batch 1, 1 thread``."""
        ...

    def beside(self, baseline: "Artifact") -> "AbstractContextManager[Callable[[Artifact], Beside]]":
        """Within the block, times artifacts beside `baseline`. Raises ExportError where no engine can be built."""
        ...

    def layer_beside(self, baseline: "nn.Module", candidate: "nn.Module", inputs: "Tensor") -> Beside:
        """Two float layers as engines of their own; `inputs` (batch, …) gives shape and type of what they read."""
        ...
