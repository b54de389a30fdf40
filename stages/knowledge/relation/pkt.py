"""Probabilities of neighbours."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import Method, Observation, Term
from ..pair import Pair

TINY = 1e-7
"""Added to probabilities before their logarithm."""


class ProbabilisticTransfer(Method, frozen=True, extra="forbid"):
    """How probable each sample finds each other one its neighbour, by the cosine of their pooled features."""

    kind = "relation"
    needs = ("features",)
    source = "PKT, Passalis & Tefas 2018, arXiv 1803.10837"

    weight: Annotated[float, Field(gt=0)] = 300.0
    """The usual 30,000 multiplies a mean over B² pairs; this one a mean over samples, about 100 times as large."""

    def term(self, pair: Pair) -> Term:
        """For pooled features of any widths."""
        return _Neighbours([pair.features()])


class _Neighbours(Term):
    def forward(self, seen: Observation) -> Tensor:
        """A scalar."""
        ((mine, theirs),) = self.maps(seen)
        return unlike_neighbours(mine, theirs)


def unlike_neighbours(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over samples j of KL(p_t(·|j) ‖ p_s(·|j)); features (B, D) in, a scalar out.

    p(i|j) = K(i, j) / Σ_{k≠j} K(k, j) with K = (cosine + 1)/2. Passalis & Tefas 2018, eq. 3 to 6; the official code
    counts each sample among its own neighbours, the paper does not.
    """
    mine, theirs = neighbours(student), neighbours(teacher)
    return (theirs * ((theirs + TINY).log() - (mine + TINY).log())).sum(1).mean()


def neighbours(features: Tensor) -> Tensor:
    """p(i|j) of features (B, D): (B, B), a row for each j, zero on the diagonal."""
    unit = functional.normalize(features, dim=1)
    likeness = (unit @ unit.T + 1) / 2
    others = likeness * (1 - torch.eye(len(likeness), dtype=likeness.dtype, device=likeness.device))
    return others / (others.sum(1, keepdim=True) + TINY)
