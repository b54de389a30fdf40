"""Normalised soft targets."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod
from .dkd import others


class NormalizedTargets(LogitMethod, frozen=True, extra="forbid"):
    """The label, weighed by how sure the teacher is of it, and the teacher's ranking of the other classes."""

    needs = ("logits", "labels")
    source = "NKD, Yang et al. 2023, arXiv 2303.13005"

    temperature: Annotated[float, Field(gt=0)] = 3.0
    """Of the other classes; the paper takes 1 for ImageNet."""
    gamma: Annotated[float, Field(ge=0)] = 3.5
    """Weighs the other classes; the paper takes 1.5 for ImageNet."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        return normalized_targets(student, teacher, target, temperature=self.temperature, gamma=self.gamma)


def normalized_targets(student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float, gamma: float) -> Tensor:
    """-p_t[y]·log p_s[y] - γ·T²·Σ_{c≠y} q_t[c]·log q_s[c], logits (B, C) in, (B,) out. Yang et al. 2023.

    p is the softmax at temperature 1; q, at T, sums to one without the target class y. These are cross-entropies: the
    loss of a student that equals its teacher is not zero.
    """
    sureness = functional.softmax(teacher, dim=1).gather(1, target[:, None]).squeeze(1)
    target_class = sureness * functional.cross_entropy(student, target, reduction="none")
    wanted = functional.softmax(others(teacher, target) / temperature, dim=1)
    other_classes = functional.cross_entropy(others(student, target) / temperature, wanted, reduction="none")
    return target_class + gamma * temperature**2 * other_classes
