"""Correlations between samples."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import Method, Observation, Term
from ..pair import Pair


class CorrelationCongruence(Method, frozen=True, extra="forbid"):
    """The correlation of each two samples' pooled features, by a Gaussian kernel."""

    kind = "relation"
    needs = ("features",)
    source = "CC, Peng et al. 2019, arXiv 1904.01802"

    gamma: Annotated[float, Field(gt=0)] = 0.4
    order: Annotated[int, Field(ge=1)] = 2
    """At which the kernel's Taylor series ends."""
    weight: Annotated[float, Field(gt=0)] = 100.0

    def term(self, pair: Pair) -> Term:
        """For pooled features of any widths."""
        return _Correlations(self, pair)


class _Correlations(Term):
    def __init__(self, method: CorrelationCongruence, pair: Pair) -> None:
        super().__init__([pair.features()])
        self._method = method

    def forward(self, seen: Observation) -> Tensor:
        """A scalar."""
        ((mine, theirs),) = self.maps(seen)
        gamma, order = self._method.gamma, self._method.order
        return (kernel(mine, gamma, order) - kernel(theirs, gamma, order)).square().mean()


def kernel(features: Tensor, gamma: float, order: int) -> Tensor:
    """e^(-2γ)·Σ_{p≤P} (2γ)^p/p!·(x_i·x_j)^p of features (B, D) brought to unit length: (B, B).

    Peng et al. 2019, eq. 9: the Taylor series of exp(-γ‖x_i - x_j‖²), taken of the (B, B) products.
    """
    unit = functional.normalize(features, dim=1)
    products = unit @ unit.T
    terms = [(2 * gamma) ** power / math.factorial(power) * products**power for power in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)
