"""Predictions at several levels."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod, Observation, Term
from ..pair import Pair
from .kd import soft_targets


class MultiLevelPredictions(LogitMethod, frozen=True, extra="forbid"):
    """Softened outputs, the likeness of samples and that of classes, at several temperatures and in two views.

    Runs both networks on a second, strongly augmented view.
    """

    needs = ("logits", "two views")
    source = "MLKD, Jin et al. 2023, CVPR"
    task_weight = 0.1

    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (2, 3, 4, 5, 6)
    weight: Annotated[float, Field(gt=0)] = 0.9

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Of one view, a scalar: samples and classes are compared with each other."""
        levels = [multi_level(student, teacher, temperature) for temperature in self.temperatures]
        return torch.stack(levels).sum()

    def term(self, pair: Pair) -> Term:
        """The sum over both views, whatever the networks are."""
        return _MultiLevelTerm(self)


class _MultiLevelTerm(Term):
    def __init__(self, method: MultiLevelPredictions) -> None:
        super().__init__()
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """A scalar."""
        method, strong, target = self._method, seen.strong, seen.batch.target
        views = [(seen.student.logits, seen.teacher.logits), (strong.student.logits, strong.teacher.logits)]
        losses = [method.loss(method.compared(mine), method.compared(theirs), target) for mine, theirs in views]
        return torch.stack(losses).sum()


def multi_level(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL + ‖P_tᵀP_t - P_sᵀP_s‖²/C + ‖P_tP_tᵀ - P_sP_sᵀ‖²/B, logits (B, C) in, a scalar out. Jin et al. 2023.

    P is the softmax at T, the norm Frobenius's. The official code also masks confident samples and classes, without
    effect on most terms, and leaves the strong view out of some; here all terms take all samples of both views.
    """
    mine, theirs = functional.softmax(student / temperature, dim=1), functional.softmax(teacher / temperature, dim=1)
    samples, classes = mine.shape
    class_likeness = (theirs.T @ theirs - mine.T @ mine).square().sum() / classes
    sample_likeness = (theirs @ theirs.T - mine @ mine.T).square().sum() / samples
    return soft_targets(student, teacher, temperature).mean() + class_likeness + sample_likeness
