"""Soft targets at each sample's own temperature."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..method import LogitMethod, standardized
from .kd import soft_targets


class NormalizedLogits(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's outputs, softened in each sample by how far its logits spread."""

    source = "NormKD, Chi et al. 2023, arXiv 2308.00520"
    task_weight = 0.1

    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Times the standard deviation of a sample's logits."""
    weight: Annotated[float, Field(gt=0)] = 0.9

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        return normalized_soft_targets(student, teacher, self.temperature)


def normalized_soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T_t²·KL(σ(z_t/T_t) ‖ σ(z_s/T_s)) with T = τ·std(z), logits (B, C) in, (B,) out. Chi et al. 2023.

    A softmax takes no notice of a shift, so that dividing by T is standardising and dividing by τ.
    """
    spread = teacher.std(1)
    return spread.square() * soft_targets(standardized(student), standardized(teacher), temperature)
