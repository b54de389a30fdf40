"""Correlation congruence."""

import math
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import Comparison, Method, Term
from ..pair import Pair


class Congruence(Method, frozen=True, extra="forbid"):
    """How near samples are to each other on the sphere of directions, by a Gaussian kernel."""

    kind = "relation"
    needs = ("features",)
    source = "CC, Peng et al. 2019, arXiv 1904.01802"

    gamma: Annotated[float, Field(gt=0)] = 0.4
    """The kernel is exp(-γ‖x - y‖²): the larger, the fewer samples are near."""
    order: Annotated[int, Field(ge=1)] = 2
    """The last power of the kernel's Taylor series."""
    weight: Annotated[float, Field(gt=0)] = 100.0

    def term(self, pair: Pair) -> Term:
        """For networks with a linear head, of any width."""
        return Comparison([pair.features()], partial(incongruence, gamma=self.gamma, order=self.order))


def incongruence(student: Tensor, teacher: Tensor, *, gamma: float, order: int) -> Tensor:
    """‖C_s - C_t‖²_F / B² of the correlations C (B, B); features (B, D) in, a scalar out. Peng et al. 2019."""
    mine, theirs = correlations(student, gamma, order), correlations(teacher, gamma, order)
    return (mine - theirs).square().mean()


def correlations(features: Tensor, gamma: float, order: int) -> Tensor:
    """exp(-2γ)·Σ_{p≤P} (2γ)^p/p!·⟨x_i, x_j⟩^p of features (B, D) scaled to length 1: (B, B).

    Peng et al. 2019: the Taylor series of exp(-γ‖x_i - x_j‖²), whose powers need no outer products.
    """
    rows = functional.normalize(features, dim=1)
    cosines = rows @ rows.T
    powers = [(2 * gamma) ** power / math.factorial(power) * cosines**power for power in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)
