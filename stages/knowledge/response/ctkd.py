"""Soft targets at a learnt temperature."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..method import Method, Observation, Share, Term, standardized
from ..pair import Pair
from .kd import kl_divergence

HIDDEN = 128
"""Units between the logits and a sample's temperature."""


class LearntTemperature(Method, frozen=True, extra="forbid"):
    """The teacher's outputs, softened by a temperature that learns to make them harder to match."""

    kind = "response"
    needs = ("logits",)
    source = "CTKD, Li et al. 2023, arXiv 2211.16231"
    task_weight = 0.1

    scope: Literal["global", "instance"] = "global"
    """One temperature for all samples, or one for each, from the logits of both networks."""
    lowest: Annotated[float, Field(gt=0)] = 1.0
    """The lowest temperature."""
    span: Annotated[float, Field(gt=0)] = 20.0
    """How far above the lowest the temperature can rise."""
    curriculum: Share = 0.04
    """The share of the training over which the temperature gets to learn at full strength: 10 of 240 epochs."""
    standardize: bool = False
    """Logits are first shifted and scaled to mean 0 and standard deviation 1 in each sample (Sun et al. 2024)."""
    weight: Annotated[float, Field(gt=0)] = 0.9

    def term(self, pair: Pair) -> Term:
        """With the temperature, a parameter or a small network, that is trained beside the student."""
        return _LearntTemperatureTerm(self, pair.student.num_classes)

    def strength(self, progress: float) -> float:
        """λ: how much of the reversed gradient the temperature gets, rising from 0 to 1 along a cosine."""
        done = min(progress / self.curriculum, 1.0) if self.curriculum else 1.0
        return (1 - math.cos(math.pi * done)) / 2


class _LearntTemperatureTerm(Term):
    def __init__(self, method: LearntTemperature, num_classes: int) -> None:
        super().__init__()
        self._method = method
        # One, as in the official code: a temperature of 15.6 of 1 to 21.
        self.raw = nn.Parameter(torch.ones(())) if method.scope == "global" else None
        self.network = (
            nn.Sequential(nn.Linear(2 * num_classes, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
            if method.scope == "instance"
            else None
        )

    def temperature(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar, or one for each sample (B,)."""
        if self.network is not None:
            # Detached: the student is to answer, not to move the temperature.
            raw = self.network(torch.cat([student, teacher], 1).detach()).squeeze(1)
        else:
            assert self.raw is not None
            raw = self.raw
        return self._method.lowest + self._method.span * raw.sigmoid()

    def forward(self, seen: Observation) -> Tensor:
        """(B,)."""
        student, teacher = seen.student.logits, seen.teacher.logits
        if self._method.standardize:
            student, teacher = standardized(student), standardized(teacher)
        temperature = self.temperature(student, teacher)
        opposed = reversed_gradient(temperature, self._method.strength(seen.moment.progress))
        return soft_targets_at(student, teacher, opposed)


def reversed_gradient(value: Tensor, strength: float) -> Tensor:
    """The value itself, whose gradient arrives times -λ (Ganin & Lempitsky 2015, arXiv 1409.7495)."""
    return value.detach() - strength * (value - value.detach())


def soft_targets_at(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """T²·KL(σ(z_t/T) ‖ σ(z_s/T)) at a scalar T or each sample's own (B,); logits (B, C) in, (B,) out.

    Li et al. 2023. T learns through both factors.
    """
    each = temperature.reshape(-1, 1)
    return temperature.square() * kl_divergence(student / each, teacher / each)
