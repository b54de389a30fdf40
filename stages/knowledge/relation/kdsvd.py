"""Singular vectors of maps."""

from itertools import pairwise
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..bridged import BridgedTerm
from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Pair

SPARE = 3
"""So many more vectors of the student are looked through for the one that is most like each of the teacher's."""
GAP = 1e-3
"""Eigenvalues, which sum to 1, nearer than this have vectors whose slope is cut."""
SHORT = 1e-3
"""The least length to divide by, of the products of maps of length 1 and a direction."""


class SingularVectors(LayerMethod, frozen=True, extra="forbid"):
    """How the strongest directions in one stage's channels lie to those in the next one's.

    Directions are singular vectors of each sample's maps. Where singular values are equal, as all are in maps that are
    zero, their vectors turn freely and have no gradient; there, and near there, the gradient is cut. Costs an
    eigendecomposition a sample, of the smaller of C and H·W, and C·C' numbers a pair of layers. Where student and
    teacher differ in channels, projectors bridge them.
    """

    kind = "relation"
    source = "KDSVD, Lee et al. 2018, arXiv 1807.06819"

    vectors: Annotated[int, Field(ge=1)] = 1
    """How many of the teacher's singular vectors are compared."""
    weight: Annotated[float, Field(gt=0)] = 10.0
    """With 1, the weight in popular code, its gradient is a few hundredths of the task's, or less."""

    def term(self, pair: Pair) -> Term:
        """For two layers or more of maps, or of tokens that are a square grid of patches."""
        return _VectorsTerm(self, pair)


class _VectorsTerm(BridgedTerm):
    def __init__(self, method: SingularVectors, pair: Pair) -> None:
        super().__init__(pair.matches(method.layers, grids=True, at_least=2))
        self._count = method.vectors

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the consecutive layers, (B,)."""
        vectors = [aligned_vectors(mine, theirs, self._count) for mine, theirs in self.grids(seen)]
        return mean_over_layers(
            [
                (affinities(mine, mine_next) - affinities(theirs, theirs_next)).square().sum((1, 2, 3))
                for (mine, theirs), (mine_next, theirs_next) in pairwise(vectors)
            ]
        )


def affinities(first: Tensor, second: Tensor) -> Tensor:
    """exp(-(v_i - v'_j)² / 8) of vectors (B, C, K) and (B, C', K), as many each: (B, C, C', K). Lee et al. 2018."""
    count = min(first.shape[2], second.shape[2])
    return torch.exp(-(first[:, :, None, :count] - second[:, None, :, :count]).square() / 8)


def aligned_vectors(student: Tensor, teacher: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first singular vectors (B, C, K) of maps (B, C, H, W), the student's turned and ordered as the teacher's.

    Lee et al. 2018: for each of the teacher's, the student's of the largest cosine, with the sign of that. Both are
    multiplied by the teacher's singular values, scaled to length 1.
    """
    _, mine = singular_vectors(student, count + SPARE)
    values, theirs = singular_vectors(teacher, count)
    cosines = mine.transpose(1, 2) @ theirs
    best = cosines.abs().argmax(1, keepdim=True)
    chosen = mine.gather(2, best.expand(-1, mine.shape[1], -1)) * cosines.gather(1, best).sign()
    strengths = functional.normalize(values, dim=1)[:, None]
    return chosen * strengths, theirs * strengths


def singular_vectors(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Singular values (B, K) and vectors (B, C, K) in the channels of maps (B, C, H, W), the strongest first.

    Signs, which are free, make the sum of each vector positive. Values have no gradient, and are over the maps' length.
    """
    rows = functional.normalize(maps.flatten(1), dim=1).view_as(maps).flatten(2)
    if rows.shape[1] <= rows.shape[2]:
        values, vectors = _leading(rows @ rows.transpose(1, 2), count)
    else:
        values, places = _leading(rows.transpose(1, 2) @ rows, count)
        vectors = functional.normalize(rows @ places, dim=1, eps=SHORT)
    signs = torch.where(vectors.detach().sum(1, keepdim=True) < 0, -1, 1)
    return values.clamp_min(0).sqrt(), vectors * signs


def _leading(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # What is not finite is reported with the loss; the decomposition would stop the training without a word of why.
    return cast(tuple[Tensor, Tensor], cast(Any, _Leading).apply(matrices.nan_to_num(), count))


class _Leading(torch.autograd.Function):
    """The largest eigenvalues (B, K) and their vectors (B, N, K) of symmetric matrices (B, N, N), with safe gradients.

    A vector v_j turns by Σ_i v_i·(v_iᵀ·dA·v_j) / (λ_j - λ_i). Its divisors d become d + GAP²/d, which is at least 2·GAP
    (Lorentzian broadening, Liao et al. 2019, arXiv 1903.09650).
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
        found = cast(tuple[Tensor, Tensor], cast(Any, torch.linalg).eigh(matrices))
        values, vectors = found[0].flip(1), found[1].flip(2)
        ctx.save_for_backward(values, vectors)
        leading = values[:, :count].clone()
        ctx.mark_non_differentiable(leading)
        return leading, vectors[:, :, :count].clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator's type forgets names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        values, vectors = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        gradient = gradients[1]
        gaps = values[:, None, : gradient.shape[2]] - values[:, :, None]
        turns = gaps / (gaps.square() + GAP**2) * (vectors.transpose(1, 2) @ gradient)
        found = vectors @ turns @ vectors[:, :, : gradient.shape[2]].transpose(1, 2)
        return (found + found.transpose(1, 2)) / 2, None
