"""Weighted transformed teacher matching."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod
from .ttm import transformed_teacher


class WeightedTransformedTeacher(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's softened outputs, matched at temperature 1, more in samples that the teacher is unsure of."""

    source = "WTTM, Zheng & Yang 2024, arXiv 2402.11148"

    temperature: Annotated[float, Field(gt=0)] = 10.0
    """Of the teacher alone: 1/γ in the paper, whose γ is 0.1 or 0.2."""
    weight: Annotated[float, Field(gt=0)] = 4.0

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        return power_sum(teacher, self.temperature) * transformed_teacher(student, teacher, self.temperature)


def power_sum(logits: Tensor, temperature: float) -> Tensor:
    """Σ_c p^γ with γ = 1/T, from 1 for a sure prediction to C^(1-γ); logits (B, C) in, (B,) out."""
    return (functional.log_softmax(logits, dim=1) / temperature).logsumexp(1).exp()
