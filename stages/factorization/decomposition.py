"""The arithmetic of low rank: truncated SVD for matrices, Tucker-2 for kernels, ranks by energy; all in float64."""

import math
from typing import Any, cast

import torch
from torch import Tensor

_linalg = cast(Any, torch.linalg)  # its functions carry no types

HOOI_ITERATIONS = 5
"""Alternating refinements of the two bases; the energy they win is gone after two or three."""


def rank_of_energy(energies: Tensor, share: float) -> int:
    """The smallest number of leading `energies` (descending) whose sum is at least `share` of the whole; at least 1."""
    allowed_loss = (1 - share) * float(energies.sum())
    # From the small end: a tail of rounding errors is dropped before it adds up against the large ones.
    lost = energies.flip(0).cumsum(0)
    return max(len(energies) - int((lost <= allowed_loss).sum()), 1)


def rounded_up(rank: int, round_to: int, full: int) -> int:
    """The next multiple of `round_to`, but never above the `full` rank."""
    return min(-(-rank // round_to) * round_to, full)


def svd_rank(weight: Tensor, share: float) -> int:
    """The rank that keeps `share` of the squared Frobenius norm of a matrix (out, in)."""
    return rank_of_energy(_linalg.svdvals(weight.double()).square(), share)


def svd_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Matrices (rank, in) and (out, rank) whose product, second times first, is the nearest of that rank to `weight`.

    The singular values are split evenly, so that neither factor trains at another pace than its partner.
    """
    left, values, right = cast(tuple[Tensor, Tensor, Tensor], _linalg.svd(weight.double(), full_matrices=False))
    roots = values[:rank].sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def tucker2_ranks(weight: Tensor, share: float, *, round_to: int = 1, input_positions: float = 1.0) -> tuple[int, int]:
    """The cheapest ranks (in, out), multiples of `round_to` or full, that keep `share` of a kernel's squared norm.

    `input_positions` is how many positions the input has for each of the output, which a stride makes more than one.
    The energy of every pair is known beforehand: bases are orthonormal, so it is that of a corner of the full core.
    """
    kernel = weight.double()
    size_out, size_in, *window = kernel.shape
    full_core = torch.einsum("oihw,or,is->rshw", kernel, _spectrum(kernel, 0)[1], _spectrum(kernel, 1)[1])
    kept = full_core.square().sum((2, 3)).cumsum(0).cumsum(1)
    needed = share * float(kept[-1, -1])

    def price(ranks: tuple[int, int]) -> float:
        rank_in, rank_out = ranks
        before = input_positions * size_in * rank_in if rank_in < size_in else 0
        after = rank_out * size_out if rank_out < size_out else 0
        return before + rank_in * rank_out * math.prod(window) + after

    pairs = [
        (rank_in, rank_out)
        for rank_in in _allowed_ranks(size_in, round_to)
        for rank_out in _allowed_ranks(size_out, round_to)
        if float(kept[rank_out - 1, rank_in - 1]) >= needed
    ]
    return min(pairs, key=price)


def _allowed_ranks(full: int, round_to: int) -> list[int]:
    return [*range(round_to, full, round_to), full]


def tucker2_factors(weight: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Bases (in, rank_in) and (out, rank_out) and the core (rank_out, rank_in, h, w) between them.

    Kim et al. 2016 (arXiv:1511.06530): higher-order SVD, refined by orthogonal iteration. A mode of full rank keeps the
    identity as its basis, so that its factor can be left out.
    """
    kernel = weight.double()
    basis_in, basis_out = _basis(kernel, 1, ranks[0]), _basis(kernel, 0, ranks[1])
    for _ in range(HOOI_ITERATIONS):
        basis_out = _basis(torch.einsum("oihw,ir->orhw", kernel, basis_in), 0, ranks[1])
        basis_in = _basis(torch.einsum("oihw,or->rihw", kernel, basis_out), 1, ranks[0])
    return basis_in, basis_out, torch.einsum("oihw,or,is->rshw", kernel, basis_out, basis_in)


def _basis(kernel: Tensor, mode: int, rank: int) -> Tensor:
    size = kernel.shape[mode]
    if rank == size:
        return torch.eye(size, dtype=kernel.dtype)
    return _spectrum(kernel, mode)[1][:, :rank]


def _spectrum(kernel: Tensor, mode: int) -> tuple[Tensor, Tensor]:
    """Squared singular values, descending, and left singular vectors of the unfolding along `mode`."""
    unfolded = kernel.movedim(mode, 0).flatten(1)
    # The Gram matrix is as small as the mode, where the unfolding is wider by the other channels times the kernel.
    values, vectors = cast(tuple[Tensor, Tensor], _linalg.eigh(unfolded @ unfolded.T))
    return values.flip(0).clamp(min=0), vectors.flip(1)
