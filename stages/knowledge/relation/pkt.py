"""Probabilistic knowledge transfer."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..method import Comparison, Method, Term
from ..pair import Pair

UNLIKELY = 1e-7
"""Added to probabilities before the logarithm; samples that point in opposite directions have none."""


class Neighbourhoods(Method, frozen=True, extra="forbid"):
    """How probably each sample takes each other one as its neighbour, by the angle between their features."""

    kind = "relation"
    needs = ("features",)
    source = "PKT, Passalis & Tefas 2018, arXiv 1803.10837"

    weight: Annotated[float, Field(gt=0)] = 470.0
    """What 30000, the weight in use for the mean over all pairs, is for the mean over batches of 64 samples."""

    def term(self, pair: Pair) -> Term:
        """For networks with a linear head, of any width."""
        return Comparison([pair.features()], neighbourhood_divergence)


def neighbourhood_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over samples i of Σ_{j≠i} p_ij·log(p_ij / q_ij), teacher's p and student's q; (B, D) in, a scalar out.

    Passalis & Tefas 2018, over the number of samples. Popular code counts each sample as its own neighbour,
    too, and takes the mean over all pairs, which weakens the term with every sample more.
    """
    mine, theirs = neighbours(student), neighbours(teacher)
    return (theirs * ((theirs + UNLIKELY).log() - (mine + UNLIKELY).log())).sum(1).mean()


def neighbours(features: Tensor) -> Tensor:
    """Each sample's probabilities (B, B) of its neighbours: ½(cos + 1) over the sum of the others' in its row."""
    rows = functional.normalize(features, dim=1)
    kernel = (rows @ rows.T + 1) / 2
    others = kernel * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
    return others / others.sum(1, keepdim=True).clamp_min(UNLIKELY)
