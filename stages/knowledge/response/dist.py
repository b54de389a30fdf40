"""Correlations of predictions."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod

TINY = 1e-6
"""The least norm to divide by: what varies less, varies by rounding alone."""


class Correlations(LogitMethod, frozen=True, extra="forbid"):
    """How the teacher ranks the classes of each sample, and the samples for each class, by correlation."""

    source = "DIST, Huang et al. 2022, arXiv 2205.10536"

    temperature: Annotated[float, Field(gt=0)] = 4.0
    """The paper takes 1 for ImageNet."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weighs the classes of each sample."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weighs the samples of each class."""
    weight: Annotated[float, Field(gt=0)] = 2.0

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """A scalar: samples are compared with each other."""
        return uncorrelated(student, teacher, temperature=self.temperature, beta=self.beta, gamma=self.gamma)


def uncorrelated(student: Tensor, teacher: Tensor, *, temperature: float, beta: float, gamma: float) -> Tensor:
    """T²·(β·mean_b(1 - ρ(p_s[b], p_t[b])) + γ·mean_c(1 - ρ(p_s[:, c], p_t[:, c]))), logits (B, C) in, a scalar out.

    ρ is Pearson's correlation and p the softmax at T. Huang et al. 2022; T², which the paper lacks, is the
    official code's.
    """
    mine, theirs = functional.softmax(student / temperature, dim=1), functional.softmax(teacher / temperature, dim=1)
    classes = (1 - correlation(mine, theirs)).mean()
    samples = (1 - correlation(mine.T, theirs.T)).mean()
    return temperature**2 * (beta * classes + gamma * samples)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each row, (N, D) in, (N,) out; 0 for a row that is constant."""
    first, second = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return functional.cosine_similarity(first, second, dim=1, eps=TINY)
