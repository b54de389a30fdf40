"""Information-theoretic representation distillation."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import Method, Observation, Term
from ..pair import Pair

LOOSE = 1e-8
"""Added to variances before their root."""
LEAST = 1e-6
"""Added to the argument of the logarithm, which a perfect student would make zero."""


class Information(Method, frozen=True, extra="forbid"):
    """The teacher's features one by one, by correlation, and which samples they find alike, by mutual information.

    A linear layer, dropped afterwards, brings the student's features to the width of the teacher's.
    """

    kind = "relation"
    needs = ("features",)
    source = "ITRD, Miles et al. 2022, arXiv 2112.00459"

    correlation: Annotated[float, Field(ge=0)] = 2.0
    """Weighs the correlation of like features."""
    mutual: Annotated[float, Field(ge=0)] = 1.0
    """Weighs the mutual information of the samples; the paper takes from 0.05 to 1."""
    alpha: Annotated[float, Field(gt=0.5)] = 1.01
    """Rényi's order in the correlation; the paper takes 1.5 between networks of different kinds."""
    weight: Annotated[float, Field(gt=0)] = 1.0

    def term(self, pair: Pair) -> Term:
        """For networks with a linear head, of any width."""
        return _InformationTerm(self, pair)


class _InformationTerm(Term):
    def __init__(self, method: Information, pair: Pair) -> None:
        match = pair.features()
        super().__init__([match])
        self.embedding = nn.Linear(match.student_shape[1], match.teacher_shape[1])
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """A scalar."""
        ((mine, theirs),) = self.maps(seen)
        mine, method = self.embedding(mine), self._method
        return method.correlation * correlation_loss(mine, theirs, method.alpha) + method.mutual * mutual_loss(
            mine, theirs
        )


def correlation_loss(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """log₂ Σ_d |1 - ρ_d|^2α, where ρ_d is the correlation of the d-th features; (B, D) in, a scalar out.

    Miles et al. 2022. It falls without end as the student comes near the teacher, here to log₂ 1e-6. The official code
    divides standard deviations by B - 1 and correlations by B, so that even the teacher's own are below one.
    """
    correlations = (standardized(student) * standardized(teacher)).mean(0)
    return ((1 - correlations).abs().pow(2 * alpha).sum() + LEAST).log2()


def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖Ĝ_s‖²_F - ‖Ĝ_st‖²_F, of products of samples (B, D) of length 1; a scalar, from 0 to 1.

    Miles et al. 2022: Ĝ is G over its trace, and G_st = G_s ∘ G_t. It is not least where student and teacher agree, but
    where samples that the teacher tells apart are at right angles in the student.
    """
    mine, theirs = functional.normalize(student, dim=1), functional.normalize(teacher, dim=1)
    gram = mine @ mine.T
    joint = gram * (theirs @ theirs.T)
    return _over_trace(gram).square().sum() - _over_trace(joint).square().sum()


def standardized(features: Tensor) -> Tensor:
    """Each feature of (B, D) with mean 0 and standard deviation 1 over the batch."""
    centred = features - features.mean(0)
    return centred / (centred.square().mean(0) + LOOSE).sqrt()


def _over_trace(matrix: Tensor) -> Tensor:
    return matrix / matrix.trace().clamp_min(torch.finfo(matrix.dtype).eps)
