"""Soft targets within and across views."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod, Observation, Share, Term
from ..pair import Pair
from .kd import soft_targets


class CrossViewTargets(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's softened outputs for a weak and a strong view, each matched by the student in both views.

    Runs both networks on a second, strongly augmented view.
    """

    needs = ("logits", "two views")
    source = "CRLD, Zhang et al. 2024, arXiv 2412.16493"

    temperature: Annotated[float, Field(gt=0)] = 4.0
    within: Annotated[float, Field(ge=0)] = 2.0
    """Weighs the student's match in the same view."""
    across: Annotated[float, Field(ge=0)] = 0.5
    """Weighs the student's match in the other view."""
    weak_confidence: Share = 0.9
    """Samples of whose weak view the teacher is less sure are left out within views."""
    strong_confidence: Share = 0.2
    """Samples of whose strong view the teacher is less sure are left out across views."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Of one view of each, (B,)."""
        return soft_targets(student, teacher, self.temperature)

    def term(self, pair: Pair) -> Term:
        """The loss of both views, whatever the networks are."""
        return _CrossViewTerm(self)


class _CrossViewTerm(Term):
    def __init__(self, method: CrossViewTargets) -> None:
        super().__init__()
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """(B,): w·1(max p_t(weak) ≥ τ_w)·(weak → weak + strong → strong) + c·1(max p_t(strong) ≥ τ_s)·(the crossed).

        Zhang et al. 2024. Confidence is read at temperature 1, before any standardisation.
        """
        method, target = self._method, seen.batch.target
        weak, strong = seen.teacher.logits, seen.strong.teacher.logits
        mine_weak, mine_strong = method.compared(seen.student.logits), method.compared(seen.strong.student.logits)
        weak_targets, strong_targets = method.compared(weak), method.compared(strong)
        within = method.loss(mine_weak, weak_targets, target) + method.loss(mine_strong, strong_targets, target)
        across = method.loss(mine_strong, weak_targets, target) + method.loss(mine_weak, strong_targets, target)
        return (
            method.within * surer_than(method.weak_confidence, weak) * within
            + method.across * surer_than(method.strong_confidence, strong) * across
        )


@torch.no_grad()
def surer_than(confidence: float, logits: Tensor) -> Tensor:
    """1 where the largest probability reaches `confidence`, else 0; logits (B, C) in, (B,) out."""
    return (functional.softmax(logits, dim=1).amax(1) >= confidence).to(logits.dtype)
