"""Refined soft targets."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..method import LogitMethod, Share
from .dkd import against_rest
from .kd import kl_divergence

OUT = -1e9
"""The logit of a class that is left out: finite, so that a sample without any class left has gradients."""


class RefinedTargets(LogitMethod, frozen=True, extra="forbid"):
    """How sure the teacher is of its answer, told of the label, and its ranking of the classes below the label.

    What the teacher says against the label is left out.
    """

    needs = ("logits", "labels")
    source = "RLD, Sun et al. 2024, arXiv 2408.07703"

    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Of the classes below the label."""
    confidence_temperature: Annotated[float, Field(gt=0)] = 1.0
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weighs the confidence (SCD)."""
    beta: Annotated[float, Field(ge=0)] = 8.0
    """Weighs the classes below the label (MCD)."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    warmup: Share = 0.08
    """Twenty of the paper's 240 epochs."""

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        sure = confidence(student, teacher, target, self.confidence_temperature)
        return self.alpha * sure + self.beta * below_target(student, teacher, target, self.temperature)


def confidence(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T²·KL([max p_t, 1 - max p_t] ‖ [p_s[y], 1 - p_s[y]]), logits (B, C) in, (B,) out. Sun et al. 2024."""
    mine = against_rest(student / temperature, target)
    theirs = against_rest(teacher / temperature, teacher.argmax(1))
    return temperature**2 * kl_divergence(mine, theirs)


def below_target(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T²·KL(q_t ‖ q_s), q over the classes with z_t < z_t[y] alone; logits (B, C) in, (B,) out. Sun et al. 2024.

    Zero where the teacher finds no class less likely than the target y.
    """
    out = teacher >= teacher.gather(1, target[:, None])
    mine, theirs = (student / temperature).masked_fill(out, OUT), (teacher / temperature).masked_fill(out, OUT)
    return temperature**2 * kl_divergence(mine, theirs)
