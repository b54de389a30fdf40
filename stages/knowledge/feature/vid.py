"""Variational information distillation."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..method import LayerMethod, Observation, Term, mean_over_layers
from ..pair import Match, Pair
from ..projection import as_tokens, like, width

LEAST_VARIANCE = 1e-5
"""Added to the learnt variances, which keeps their logarithms finite."""


class VariationalInformation(LayerMethod, frozen=True, extra="forbid"):
    """How likely the teacher's maps are given the student's, under a Gaussian with a learnt variance a channel.

    Channels that the student cannot predict get a large variance and cease to matter. The loss falls below zero where
    predictions are good. It is the mean over channels and places; the usual weight of 1 for the sum over layers is 3
    times the mean of three.
    """

    source = "VID, Ahn et al. 2019, arXiv 1904.05835"

    variance: Annotated[float, Field(gt=LEAST_VARIANCE)] = 5.0
    """The variance that every channel starts with."""
    weight: Annotated[float, Field(gt=0)] = 3.0

    def term(self, pair: Pair) -> Term:
        """Three linear layers on the channels for each pair of layers, whatever their shapes."""
        return _Information(pair.matches(self.layers), self.variance)


class _Information(Term):
    def __init__(self, matches: list[Match], variance: float) -> None:
        super().__init__(matches)
        self.gaussians = nn.ModuleList(
            Gaussian(width(match.student_shape), width(match.teacher_shape), variance) for match in matches
        )

    def forward(self, seen: Observation) -> Tensor:
        """The mean over the layers, (B,)."""
        return mean_over_layers(
            [
                gaussian(_channels_last(like(mine, theirs.shape)), _channels_last(theirs))
                for gaussian, (mine, theirs) in zip(self.gaussians, self.maps(seen), strict=True)
            ]
        )


def _channels_last(tensor: Tensor) -> Tensor:
    """Maps, tokens or vectors as (B, N, C)."""
    return tensor[:, None] if tensor.ndim == 2 else as_tokens(tensor)


class Gaussian(nn.Module):
    """The distribution of the teacher's channels given the student's: the mean by a small network, the variance by α.

    On maps its linear layers are the 1×1 convolutions of the paper.
    """

    def __init__(self, student: int, teacher: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Linear(student, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
            nn.ReLU(),
            nn.Linear(teacher, teacher, bias=False),
        )
        self.alpha = nn.Parameter(torch.full((teacher,), _softplus_inverse(variance - LEAST_VARIANCE)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of tokens (B, N, C) of both, (B,)."""
        return surprise(self.mean(student), teacher, functional.softplus(self.alpha) + LEAST_VARIANCE)


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))


def surprise(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """The mean of ½ (log v_c + (t - μ)² / v_c) over places and channels; tokens (B, N, C), variances (C,): (B,).

    Ahn et al. 2019, without the constant: minus the logarithm of the Gaussian density.
    """
    return 0.5 * (variance.log() + (teacher - mean).square() / variance).mean((1, 2))
