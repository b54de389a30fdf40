"""The arithmetic of low rank: truncated SVD for matrices, Tucker-2 for kernels, ranks by energy; all in float64."""

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


def tucker2_ranks(weight: Tensor, share: float) -> tuple[int, int]:
    """Ranks (in, out) of a kernel (out, in, h, w) that together lose at most 1 − `share` of its squared norm.

    The squared error of a truncated higher-order SVD is at most the sum of what each mode drops (De Lathauwer et al.
    2000, property 10), so each of the two may drop half.
    """
    share_of_mode = 1 - (1 - share) / 2
    rank_in, rank_out = (rank_of_energy(_spectrum(weight.double(), mode)[0], share_of_mode) for mode in (1, 0))
    return rank_in, rank_out


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
