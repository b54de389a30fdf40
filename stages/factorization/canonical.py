"""The arithmetic of canonical polyadic (CP) factors: a kernel as a sum of outer products of four vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor

from ...pipeline.seeding import generator
from .decomposition import unfolded

_linalg = cast(Any, torch.linalg)  # its functions carry no types

RIDGES = (1e-4, 1e-3, 1e-2)
"""Weights of the components' norms beside a squared error of at most 1; a higher one where components still cancel. On
trained kernels of a ResNet-20 the first costs next to no energy, and halves the components."""
MOST_CANCELLING = 25.0
"""The components' squared norms may add up to so many times the kernel's; a trained ResNet-20 has up to 5."""
TOLERANCE = 1e-4
"""The fit ends once a sweep lowers the squared error by less than this share of it."""
NOISE = 0.1
"""Of the start: vectors of a mode that meet in one component by their order alone may all miss the kernel, and a
regularised component that begins at zero stays there."""
MOST_SWEEPS = 50
FEWEST_SWEEPS = 15
FIT_MACS = 3e10
"""Multiply-accumulates that one fit may take, some seconds of one core: layers so large get fewer sweeps, or no CP."""


@dataclass(frozen=True)
class Canonical:
    """What was fitted to a kernel (out, in, h, w)."""

    columns: tuple[Tensor, Tensor, Tensor, Tensor]
    """By mode (size, rank); each component's norm is split evenly among its four columns."""
    energy: float
    """The share of the kernel's squared norm that the sum of the components keeps."""


def sweeps_within(shape: Sequence[int], rank: int) -> int:
    """How many sweeps over the modes of a kernel fit into FIT_MACS, at most MOST_SWEEPS."""
    per_sweep = 2 * math.prod(shape) * rank + rank * rank * sum(shape) + 4 * rank**3 / 3
    return min(int(FIT_MACS / per_sweep), MOST_SWEEPS)


def canonical(kernel: Tensor, rank: int) -> Canonical | None:
    """The sum of `rank` outer products that alternating least squares finds near a kernel; None where none is stable.

    CP as Lebedev et al. 2015 (arXiv:1412.6553) use it. A tensor need not have a nearest one of a rank: components
    can grow without bound while they cancel each other (de Silva and Lim 2008), and such factors are lost when they are
    trained or rounded (Phan et al. 2020, arXiv:2008.05441). So the least squares are regularised: the squared norms of
    all columns count, by a small weight, beside the squared error, which has a least value then. Where the
    components' squared norms still add up to more than MOST_CANCELLING times the kernel's, the weight is raised.

    The start is the higher-order SVD with a little noise, and random columns where the rank exceeds a mode, of fixed
    seeds; all in float64.
    """
    norm = float(kernel.double().square().sum().sqrt())
    if norm == 0:
        zeros = [torch.zeros(size, rank, dtype=torch.float64) for size in kernel.shape]
        return Canonical((zeros[0], zeros[1], zeros[2], zeros[3]), 1.0)
    unit = kernel.double() / norm
    sweeps = max(sweeps_within(kernel.shape, rank), 1)
    for ridge in RIDGES:
        columns, error = _fitted(unit, _start(unit, rank), ridge, sweeps)
        components = reduce(torch.mul, map(_norms, columns))
        if float(components.square().sum()) <= MOST_CANCELLING:
            after, before, vertical, horizontal = (each * norm**0.25 for each in columns)
            return Canonical((after, before, vertical, horizontal), 1 - error)
    return None


def _fitted(kernel: Tensor, columns: list[Tensor], ridge: float, sweeps: int) -> tuple[list[Tensor], float]:
    """The columns after the sweeps, and their squared error."""
    error = math.inf
    for _ in range(sweeps):
        before = error
        columns, error = _swept(kernel, columns, ridge)
        columns = _balanced(columns)
        if before - error < TOLERANCE * before:
            break
    return columns, error


def _swept(kernel: Tensor, columns: Sequence[Tensor], ridge: float) -> tuple[list[Tensor], float]:
    """One round of least squares over the modes, the others held, and the squared error after it."""
    after, before, vertical, horizontal = columns
    # Two products with the kernel a sweep: this one serves three modes.
    seen = (kernel.flatten(1).T @ after).reshape(*kernel.shape[1:], -1)
    along_rows = (seen * horizontal).sum(2)
    before = _solved((along_rows * vertical).sum(1), (after, vertical, horizontal), ridge)
    vertical = _solved((along_rows * before[:, None]).sum(0), (after, before, horizontal), ridge)
    horizontal = _solved(
        (seen * before[:, None, None] * vertical[:, None]).sum((0, 1)), (after, before, vertical), ridge
    )
    products = kernel.flatten(1) @ reduce(_by_columns, (before, vertical, horizontal))
    after = _solved(products, (before, vertical, horizontal), ridge)
    found = [after, before, vertical, horizontal]
    shared = float((products * after).sum())
    return found, float(kernel.square().sum()) - 2 * shared + float(_gram(found).sum())


def _solved(products: Tensor, others: Sequence[Tensor], ridge: float) -> Tensor:
    gram = _gram(others)
    gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_solve(products.T, cast(Tensor, _linalg.cholesky(gram))).T


def _gram(columns: Sequence[Tensor]) -> Tensor:
    """The inner products of outer products of these columns."""
    return reduce(torch.mul, [each.T @ each for each in columns])


def _by_columns(left: Tensor, right: Tensor) -> Tensor:
    """The Kronecker products of equal columns."""
    return (left[:, None] * right[None]).flatten(0, 1)


def _balanced(columns: Sequence[Tensor]) -> list[Tensor]:
    """The same components, each with columns of equal norms: of all ways to write it, the one of least norms."""
    norms = [_norms(each) for each in columns]
    share = reduce(torch.mul, norms) ** (1 / len(columns))
    smallest = torch.finfo(torch.float64).tiny
    return [each * (share / norm.clamp(min=smallest)) for each, norm in zip(columns, norms, strict=True)]


def _norms(columns: Tensor) -> Tensor:
    return columns.square().sum(0).sqrt()


def _start(kernel: Tensor, rank: int) -> list[Tensor]:
    return [_leading(kernel, mode, rank) for mode in range(kernel.ndim)]


def _leading(kernel: Tensor, mode: int, rank: int) -> Tensor:
    matrix = unfolded(kernel, mode)
    # The vectors of the largest eigenvalues come last.
    leading = cast(Tensor, _linalg.eigh(matrix @ matrix.T)[1]).flip(1)[:, :rank]
    draws = generator(0, "cp", mode, rank)
    drawn = torch.randn(len(matrix), rank, generator=draws, dtype=torch.float64)
    beyond = drawn[:, leading.shape[1] :]
    return torch.cat([leading, beyond / _norms(beyond)], 1) + NOISE * drawn
