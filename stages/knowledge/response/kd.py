"""Soft targets."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod


class SoftTargets(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's softened outputs, T²·KL."""

    source = "Hinton et al. 2015, arXiv 1503.02531"
    task_weight = 0.1

    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(gt=0)] = 0.9

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """T²·KL(teacher ‖ student), (B,)."""
        return soft_targets(student, teacher, self.temperature)


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(σ(z_t/T) ‖ σ(z_s/T)), summed over classes; logits (B, C) in, one value a sample (B,) out.

    Hinton et al. 2015, arXiv 1503.02531. T² keeps the gradients' size independent of the temperature. The mean is to
    be taken over samples only, not over samples and classes, which would weaken the term by the number of classes.
    """
    return temperature**2 * kl_divergence(student / temperature, teacher / temperature)


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(σ(z_t) ‖ σ(z_s)) of logits (B, C), summed over classes: (B,)."""
    log_student, log_teacher = functional.log_softmax(student, dim=1), functional.log_softmax(teacher, dim=1)
    return functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
