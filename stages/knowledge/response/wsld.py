"""Weighted soft targets."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import LogitMethod
from .kd import soft_targets

TINY = 1e-7
"""Added to the teacher's error before dividing by it."""


class WeightedTargets(LogitMethod, frozen=True, extra="forbid"):
    """The teacher's softened outputs, less of them in samples whose label the student already knows."""

    needs = ("logits", "labels")
    source = "WSLD, Zhou et al. 2021, arXiv 2102.00650"

    temperature: Annotated[float, Field(gt=0)] = 4.0
    weight: Annotated[float, Field(gt=0)] = 2.25

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        return need_of_teaching(student, teacher, target) * soft_targets(student, teacher, self.temperature)


@torch.no_grad()
def need_of_teaching(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """1 - exp(-CE_s / CE_t), from 0 to 1; logits (B, C) in, (B,) out. Zhou et al. 2021.

    The weights are constants to the gradient, so that T²·KL has the gradient of the paper's soft cross-entropy.
    """
    mine = functional.cross_entropy(student, target, reduction="none")
    theirs = functional.cross_entropy(teacher, target, reduction="none")
    return -torch.expm1(-mine / (theirs + TINY))
