"""Transformed teacher matching."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..method import LogitMethod
from .kd import kl_divergence


class TransformedTeacher(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's softened outputs, matched by the student's own at temperature 1."""

    source = "TTM, Zheng & Yang 2024, arXiv 2402.11148"

    temperature: Annotated[float, Field(gt=0)] = 10.0
    """Of the teacher alone: 1/γ in the paper, whose γ is 0.1 or 0.2."""
    weight: Annotated[float, Field(gt=0)] = 45.0

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        return transformed_teacher(student, teacher, self.temperature)


def transformed_teacher(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(p_t^γ / Σ_c p_t^γ ‖ p_s) with γ = 1/T, logits (B, C) in, (B,) out. Zheng & Yang 2024.

    The student's logits are not divided by T, so that there is no T² either.
    """
    return kl_divergence(student, teacher / temperature)
