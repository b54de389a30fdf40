"""A teacher made by hand."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..method import Method, Observation, Term
from ..pair import Pair
from .kd import soft_targets


class VirtualTeacher(Method, frozen=True, extra="forbid"):
    """The label, from a made-up teacher that is nearly sure of it and finds all other classes alike.

    Needs no teacher.
    """

    kind = "response"
    needs = ("logits", "labels")
    source = "Tf-KD_reg, Yuan et al. 2020, arXiv 1909.11723"
    task_weight = 0.9
    learns_from_teacher = False

    temperature: Annotated[float, Field(gt=0)] = 20.0
    correctness: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """The probability that the virtual teacher gives the label, at temperature 1."""
    weight: Annotated[float, Field(gt=0)] = 0.1

    def term(self, pair: Pair) -> Term:
        """For any student."""
        return _VirtualTeacherTerm(self)


class _VirtualTeacherTerm(Term):
    def __init__(self, method: VirtualTeacher) -> None:
        super().__init__()
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """(B,)."""
        student = seen.student.logits
        teacher = virtual_logits(student, seen.batch.target, self._method.correctness)
        return soft_targets(student, teacher, self._method.temperature)


def virtual_logits(like: Tensor, target: Tensor, correctness: float) -> Tensor:
    """Logits (B, C) whose softmax gives the target `correctness` and every other class the same share of the rest.

    Yuan et al. 2020, §4. The official code softens the probabilities as if they were logits, leaves the student's
    as they are and means KL over classes too; the paper, and this, soften both distributions.
    """
    rest = (1 - correctness) / (like.shape[1] - 1)
    return torch.full_like(like, math.log(rest)).scatter(1, target[:, None], math.log(correctness))
