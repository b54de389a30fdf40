"""Relational knowledge distillation."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] - torch leaves it untyped

from ..method import Comparison, Method, Term
from ..pair import Pair

BLOCK = 2**22
"""Numbers of one block of differences or angles; a block is made anew in the backward pass, not held until then."""
COINCIDENT = 1e-8
"""Samples have no direction from one whose squared distance is smaller than this, over the mean one."""


class Relations(Method, frozen=True, extra="forbid"):
    """The distances between samples, and the angles of the triangles that they form.

    The angles take about B³·D operations of the features (B, D), and the memory of B² numbers and a block.
    """

    kind = "relation"
    needs = ("features",)
    source = "RKD, Park et al. 2019, arXiv 1904.05068"

    distance: Annotated[float, Field(ge=0)] = 25.0
    """Weighs the distances."""
    angle: Annotated[float, Field(ge=0)] = 50.0
    """Weighs the angles."""

    def term(self, pair: Pair) -> Term:
        """For networks with a linear head, of any width."""
        return Comparison([pair.features()], partial(relational_loss, distance=self.distance, angle=self.angle))


def relational_loss(student: Tensor, teacher: Tensor, *, distance: float, angle: float) -> Tensor:
    """w_d·L_D + w_a·L_A of features (B, D), a scalar. Park et al. 2019, section 3.2."""
    return distance * distance_loss(student, teacher) + angle * angle_loss(student, teacher)


def distance_loss(student: Tensor, teacher: Tensor, *, block: int = BLOCK) -> Tensor:
    """The mean over pairs of distinct samples of Huber(d_s, d_t); features (B, D) in, a scalar out.

    d are the distances over their mean, which leaves out pairs at one place. The paper sums over the pairs; popular
    code takes the mean over B² entries, the diagonal's zeros included.
    """
    mine, theirs = scaled(distances(student, block=block)), scaled(distances(teacher, block=block))
    count = len(student)
    return functional.smooth_l1_loss(mine, theirs, reduction="sum") / max(count * (count - 1), 1)


def angle_loss(student: Tensor, teacher: Tensor, *, block: int = BLOCK) -> Tensor:
    """The mean over triples of distinct samples of Huber(cos_s, cos_t), the angle at the second; (B, D) in.

    The paper sums over the triples; popular code takes the mean over B³ entries, those with equal samples included.
    """
    count, width = len(student), max(len(student), student.shape[1], teacher.shape[1])
    step = max(block // (count * width), 1)
    errors = [
        _recomputed(_angle_errors, student, teacher, start, min(start + step, count)) for start in range(0, count, step)
    ]
    return torch.stack(errors).sum() / max(count * (count - 1) * (count - 2), 1)


def distances(features: Tensor, *, block: int = BLOCK) -> Tensor:
    """‖x_i - x_j‖ of features (B, D): (B, B), from the differences themselves, so that near samples keep theirs."""
    step = max(block // features.numel(), 1)
    rows = [_recomputed(_lengths, features, start, start + step) for start in range(0, len(features), step)]
    return torch.cat(rows)


def scaled(distances: Tensor) -> Tensor:
    """Distances (B, B) over the mean of those that are not zero."""
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1)


def _lengths(features: Tensor, start: int, stop: int) -> Tensor:
    squares = (features[start:stop, None] - features).square().sum(2)
    # Where two samples are at one place, the root has no slope; their distance is zero and pulls at neither.
    return torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)


def _angle_errors(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    """The sum of the Huber losses of all angles at the vertices from `start` to `stop`."""
    errors = functional.smooth_l1_loss(_cosines(student, start, stop), _cosines(teacher, start, stop), reduction="none")
    return errors.sum() - errors.diagonal(dim1=1, dim2=2).sum()


def _cosines(features: Tensor, start: int, stop: int) -> Tensor:
    """⟨e_ij, e_kj⟩ with e_ij = (x_i - x_j) / ‖x_i - x_j‖, by vertex j, then i and k; 0 where a side has no length."""
    sides = features - features[start:stop, None]
    squares = sides.square().sum(2, keepdim=True)
    long = squares > COINCIDENT * squares.mean(1, keepdim=True)
    unit = sides * torch.where(long, torch.where(long, squares, 1).rsqrt(), 0)
    return unit @ unit.transpose(1, 2)


def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return cast(Tensor, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))
