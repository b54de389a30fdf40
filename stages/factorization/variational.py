"""The rank of a noisy matrix by empirical variational Bayes, without anything to choose."""

import math
from typing import Any, cast

import torch
from torch import Tensor

_linalg = cast(Any, torch.linalg)  # its functions carry no types

TAU = 2.5129
"""A signal of strength TAU · √α or more stands out; the approximation that the paper gives for every shape."""
TRIALS = 2000
"""Noise variances tried, evenly in their logarithms."""


def vbmf_rank(matrix: Tensor) -> int:
    """How many singular values of a matrix stand out of its noise; at least 1.

    The analytic global solution of empirical variational Bayesian matrix factorization, its noise variance the one of
    least free energy (Nakajima, Sugiyama, Babacan and Tomioka 2013, JMLR 14).
    """
    values = cast(Tensor, _linalg.svdvals(matrix.double()))
    rows, columns = sorted(matrix.shape)
    if float(values[0]) == 0:
        return 1
    alpha = rows / columns
    # With nothing but zeros behind some value the noise vanishes: those before it are the rank.
    floor = float(values[0].square()) * torch.finfo(torch.float32).eps ** 2
    squares = values.square().clamp(min=floor)
    energies = [
        (free_energy(squares, variance, rows, columns), variance) for variance in _variances(squares, rows, columns)
    ]
    noise = min(energies)[1]
    return max(int((squares > columns * noise * _threshold(alpha)).sum()), 1)


def free_energy(squares: Tensor, variance: float, rows: int, columns: int) -> float:
    """The free energy, up to constants, of squared singular values (`rows` of them) at a noise `variance`."""
    alpha = rows / columns
    scaled = squares / (columns * variance)
    signal = scaled[scaled > _threshold(alpha)]
    noise = scaled[scaled <= _threshold(alpha)]
    centered = signal - (1 + alpha)
    tau = (centered + (centered.square() - 4 * alpha).clamp(min=0).sqrt()) / 2
    of_signal = signal - tau + ((tau + 1) / signal).log() + alpha * (tau / alpha + 1).log()
    return float((noise - noise.log()).sum() + of_signal.sum())


def _threshold(alpha: float) -> float:
    tau = TAU * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def _variances(squares: Tensor, rows: int, columns: int) -> list[float]:
    """Between the bounds that the paper gives for the solution."""
    highest = float(squares.sum()) / (rows * columns)
    behind = squares[min(math.ceil(rows / (1 + rows / columns)) - 1, rows - 1) :]
    threshold = _threshold(rows / columns)
    lowest = max(float(behind[0]) / (columns * threshold), float(behind.mean()) / columns)
    lowest = min(lowest, highest)
    tried = torch.logspace(math.log10(lowest), math.log10(highest), TRIALS, dtype=torch.float64)
    return [float(variance) for variance in tried]
