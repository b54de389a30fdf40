"""The arithmetic of low rank: truncated SVD for matrices, Tucker-2 and spatial factors for kernels; all in float64."""

import math
from typing import Any, Literal, cast

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


def energies(matrix: Tensor) -> Tensor:
    """The squared singular values of a matrix, descending."""
    return cast(Tensor, _linalg.svdvals(matrix.double())).square()


def unfolded(weight: Tensor, mode: int | Literal["spatial"]) -> Tensor:
    """A kernel (out, in, h, w) as a matrix: its first or second mode against all else, or (in · h, w · out)."""
    if mode == "spatial":
        return weight.permute(1, 2, 3, 0).flatten(0, 1).flatten(1)
    return weight.movedim(mode, 0).flatten(1)


def svd_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Matrices (rank, in) and (out, rank) whose product, second times first, is the nearest of that rank to `weight`.

    The singular values are split evenly, so that neither factor trains at another pace than its partner.
    """
    left, values, right = cast(tuple[Tensor, Tensor, Tensor], _linalg.svd(weight.double(), full_matrices=False))
    roots = values[:rank].sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots


def spatial_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Kernels (rank, in, h, 1) and (out, rank, 1, w) whose product over the rank is the nearest to `weight`.

    Jaderberg et al. 2014 (arXiv:1405.3866), scheme 2, in closed form: the SVD of the kernel as (in · h, w · out).
    """
    size_out, size_in, height, width = weight.shape
    second, first = svd_factors(unfolded(weight, "spatial"), rank)
    vertical = first.T.reshape(rank, size_in, height, 1)
    horizontal = second.reshape(rank, width, size_out).permute(2, 0, 1)[:, :, None, :]
    return vertical, horizontal


def tucker2_energies(weight: Tensor) -> Tensor:
    """The energy (out, in) that ranks of so many leading basis vectors keep of a kernel.

    It is known for every pair beforehand: bases are orthonormal, so it is that of a corner of the full core.
    """
    kernel = weight.double()
    full_core = torch.einsum("oihw,or,is->rshw", kernel, _spectrum(kernel, 0)[1], _spectrum(kernel, 1)[1])
    return full_core.square().sum((2, 3)).cumsum(0).cumsum(1)


def cheapest_tucker2_ranks(
    kept: Tensor, share: float, window: int, round_to: int = 1, input_positions: float = 1.0
) -> tuple[int, int]:
    """The cheapest ranks (in, out), multiples of `round_to` or full, that keep `share` of a kernel's squared norm.

    `kept` is what `tucker2_energies` says, `window` the kernel's height times width, and `input_positions` how many
    positions the input has for each of the output, which a stride makes more than one.
    """
    size_out, size_in = kept.shape
    ranks_in, ranks_out = _allowed_ranks(size_in, round_to), _allowed_ranks(size_out, round_to)
    before = torch.where(ranks_in < size_in, input_positions * size_in * ranks_in, 0)
    after = torch.where(ranks_out < size_out, ranks_out * size_out, 0)
    prices = before[:, None] + ranks_in[:, None] * ranks_out * window + after
    enough = share * kept[-1, -1] <= kept[ranks_out - 1][:, ranks_in - 1].T
    cheapest = int(torch.where(enough, prices.double(), math.inf).argmin())
    number_in, number_out = divmod(cheapest, len(ranks_out))
    return int(ranks_in[number_in]), int(ranks_out[number_out])


def _allowed_ranks(full: int, round_to: int) -> Tensor:
    return torch.tensor([*range(round_to, full, round_to), full])


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
    matrix = unfolded(kernel, mode)
    # The Gram matrix is as small as the mode, where the unfolding is wider by the other channels times the kernel.
    values, vectors = cast(tuple[Tensor, Tensor], _linalg.eigh(matrix @ matrix.T))
    return values.flip(0).clamp(min=0), vectors.flip(1)
