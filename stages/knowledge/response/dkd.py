"""Decoupled soft targets."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..method import LogitMethod, Share
from .kd import kl_divergence


class DecoupledTargets(LogitMethod, frozen=True, extra="forbid"):
    """How sure the teacher is of the label, and apart from it how it ranks the other classes."""

    needs = ("logits", "labels")
    source = "DKD, Zhao et al. 2022, arXiv 2203.08679"

    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weighs the target class against the rest (TCKD)."""
    beta: Annotated[float, Field(ge=0)] = 8.0
    """Weighs the other classes among themselves (NCKD); 2 for ResNets of CIFAR, 6 to 8 for wider students."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    warmup: Share = 0.08
    """Twenty of the paper's 240 epochs."""

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        return decoupled(student, teacher, target, temperature=self.temperature, alpha=self.alpha, beta=self.beta)


def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float, alpha: float, beta: float
) -> Tensor:
    """T²·(α·KL(b_t ‖ b_s) + β·KL(q_t ‖ q_s)), logits (B, C) in, (B,) out. Zhao et al. 2022, eq. 7.

    b is the probability of the target and of all others together, q that of the others among themselves, both at T.
    With α = 1 and β = 1 - p_t[target] it is T²·KL of all classes.
    """
    student, teacher = student / temperature, teacher / temperature
    target_class = kl_divergence(against_rest(student, target), against_rest(teacher, target))
    other_classes = kl_divergence(others(student, target), others(teacher, target))
    return temperature**2 * (alpha * target_class + beta * other_classes)


def others(logits: Tensor, target: Tensor) -> Tensor:
    """The logits (B, C) without each sample's target: (B, C - 1), in the order of the classes."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, columns + (columns >= target[:, None]))


def against_rest(logits: Tensor, target: Tensor) -> Tensor:
    """Two logits (B, 2) whose softmax is the probability of the target, and that of all other classes together."""
    return torch.cat([logits.gather(1, target[:, None]), others(logits, target).logsumexp(1, keepdim=True)], 1)
