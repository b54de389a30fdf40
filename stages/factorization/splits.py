"""One class for each kind of factors: which ranks keep how much of a layer, at what cost, and with which weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from .canonical import FEWEST_SWEEPS, Canonical, canonical, sweeps_within
from .decomposition import (
    cheapest_tucker2_ranks,
    energies,
    rank_of_energy,
    rounded_up,
    spatial_factors,
    svd_factors,
    tucker2_energies,
    tucker2_factors,
    unfolded,
)
from .variational import vbmf_rank

Kind = Literal["svd", "tucker2", "spatial", "cp", "embedding"]
"""`svd`: of linear layers and 1×1 convolutions; `tucker2`: 1×1, k×k, 1×1 (Kim et al. 2016, arXiv 1511.06530);
`spatial`: k×1, then 1×k (Jaderberg et al. 2014, arXiv 1405.3866); `cp`: 1×1, k×1 and 1×k depthwise, 1×1 (Lebedev et al.
2015, arXiv 1412.6553); `embedding`: a narrow embedding, then a linear layer (Lan et al. 2020, arXiv 1909.11942)."""

CP_RANKS = 16
"""Ranks of CP that a layer is tried at, since each is a fit of its own: evenly spaced multiples of `round_to`."""

Ranks = tuple[int, ...]


class Split(ABC):
    """A layer's weight (out, in, …), in one kind of factors; what is costly is computed once."""

    def __init__(self, weight: Tensor, round_to: int, stride: Sequence[int]) -> None:
        self._weight = weight
        self._round_to = round_to
        self._stride = stride

    @abstractmethod
    def of_energy(self, share: float) -> Ranks | None:
        """The cheapest ranks that keep this share of the squared norm; None where none that pay do."""

    @abstractmethod
    def of_noise(self) -> Ranks | None:
        """The ranks that stand out of the noise; None where none that pay hold it."""

    @abstractmethod
    def price(self, ranks: Ranks) -> float:
        """Multiply-accumulates for one position of the output, all but the input's borders counted."""

    @abstractmethod
    def energy(self, ranks: Ranks) -> float:
        """The share of the squared norm that the factors keep."""

    @abstractmethod
    def weights(self, ranks: Ranks) -> list[Tensor]:
        """Those of the factors in the order they run, in float64; the first reads the inputs along its second axis."""


class _OfMatrix(Split):
    """A matrix as a product of two: truncated SVD."""

    @property
    @abstractmethod
    def _matrix(self) -> Tensor: ...

    @cached_property
    def _energies(self) -> Tensor:
        return energies(self._matrix)

    def of_energy(self, share: float) -> Ranks:
        return (self._rounded(rank_of_energy(self._energies, share)),)

    def of_noise(self) -> Ranks:
        return (self._rounded(vbmf_rank(self._matrix)),)

    def energy(self, ranks: Ranks) -> float:
        total = float(self._energies.sum())
        return 1 - float(self._energies[ranks[0] :].sum()) / total if total else 1.0

    def _rounded(self, rank: int) -> int:
        return rounded_up(rank, self._round_to, min(self._matrix.shape))


class _Svd(_OfMatrix):
    """Of a linear layer, a 1×1 convolution or, with words for inputs, an embedding."""

    @property
    def _matrix(self) -> Tensor:
        return self._weight.flatten(1)

    def price(self, ranks: Ranks) -> float:
        return ranks[0] * sum(self._matrix.shape)

    def weights(self, ranks: Ranks) -> list[Tensor]:
        first, second = svd_factors(self._matrix, ranks[0])
        trailing = (1,) * (self._weight.ndim - 2)
        return [first.reshape(*first.shape, *trailing), second.reshape(*second.shape, *trailing)]


class _Spatial(_OfMatrix):
    """Of a kernel: along its columns, then along its rows."""

    @property
    def _matrix(self) -> Tensor:
        return unfolded(self._weight, "spatial")

    def price(self, ranks: Ranks) -> float:
        size_out, size_in, height, width = self._weight.shape
        # The first factor has the stride of the rows alone.
        return ranks[0] * (size_in * height * self._stride[1] + size_out * width)

    def weights(self, ranks: Ranks) -> list[Tensor]:
        return [*spatial_factors(self._weight, ranks[0])]


class _Tucker2(Split):
    """Of a kernel: fewer channels before and after it."""

    @cached_property
    def _kept(self) -> Tensor:
        return tucker2_energies(self._weight)

    def of_energy(self, share: float) -> Ranks:
        window, positions = math.prod(self._weight.shape[2:]), math.prod(self._stride)
        return cheapest_tucker2_ranks(self._kept, share, window, self._round_to, positions)

    def of_noise(self) -> Ranks:
        return tuple(
            rounded_up(vbmf_rank(unfolded(self._weight, mode)), self._round_to, self._weight.shape[mode])
            for mode in (1, 0)
        )

    def price(self, ranks: Ranks) -> float:
        size_out, size_in, *window = self._weight.shape
        rank_in, rank_out = ranks
        before = math.prod(self._stride) * size_in * rank_in if rank_in < size_in else 0
        return before + rank_in * rank_out * math.prod(window) + (rank_out * size_out if rank_out < size_out else 0)

    def energy(self, ranks: Ranks) -> float:
        total = float(self._weight.double().square().sum())
        core = tucker2_factors(self._weight, (ranks[0], ranks[1]))[2]
        # The bases are orthonormal, so the core has all that the factors keep.
        return float(core.square().sum()) / total if total else 1.0

    def weights(self, ranks: Ranks) -> list[Tensor]:
        rank_in, rank_out = ranks
        basis_in, basis_out, core = tucker2_factors(self._weight, (rank_in, rank_out))
        before = [basis_in.T[:, :, None, None]] if rank_in < self._weight.shape[1] else []
        after = [basis_out[:, :, None, None]] if rank_out < self._weight.shape[0] else []
        return [*before, core, *after]


class _Cp(Split):
    """Of a kernel: a sum of outer products, which runs as 1×1, depthwise k×1 and 1×k, and 1×1 convolutions.

    How much a rank keeps is known only once it was fitted. So a layer is tried at CP_RANKS ranks at most, of those that
    cost less than the layer and can be fitted in time; where none of them keeps enough, there are no ranks.
    """

    def __init__(self, weight: Tensor, round_to: int, stride: Sequence[int]) -> None:
        super().__init__(weight, round_to, stride)
        self._fits: dict[int, Canonical | None] = {}

    def of_energy(self, share: float) -> Ranks | None:
        ranks = self._tried
        low, high = 0, len(ranks)
        while low < high:
            middle = (low + high) // 2
            if self.energy((ranks[middle],)) >= share:
                high = middle
            else:
                low = middle + 1
        return (ranks[low],) if low < len(ranks) else None

    def of_noise(self) -> Ranks | None:
        """That which keeps as much as Tucker-2 does with the ranks above the noise: its estimate is one of matrices."""
        tucker2 = _Tucker2(self._weight, 1, self._stride)
        return self.of_energy(tucker2.energy(tucker2.of_noise()))

    def price(self, ranks: Ranks) -> float:
        size_out, size_in, height, width = self._weight.shape
        down = height * self._stride[1]
        return ranks[0] * (size_in * math.prod(self._stride) + down + width + size_out)

    def energy(self, ranks: Ranks) -> float:
        """That of the fit; below 0 where components cancel and grow, so that no share is ever met."""
        fit = self._fit(ranks[0])
        return -1.0 if fit is None else fit.energy

    def weights(self, ranks: Ranks) -> list[Tensor]:
        fit = self._fit(ranks[0])
        assert fit is not None  # of_energy gives ranks of stable fits alone
        after, before, vertical, horizontal = fit.columns
        if 1 in self._weight.shape[2:]:
            between = [torch.einsum("hr,wr->rhw", vertical, horizontal)[:, None]]
        else:
            between = [vertical.T[:, None, :, None], horizontal.T[:, None, None, :]]
        return [before.T[:, :, None, None], *between, after[:, :, None, None]]

    @cached_property
    def _tried(self) -> list[int]:
        """The ranks that are tried, rising."""
        whole, step = self._weight.numel(), self._round_to
        paying: list[int] = []
        while self.price((len(paying) * step + step,)) < whole:
            rank = len(paying) * step + step
            if sweeps_within(self._weight.shape, rank) < FEWEST_SWEEPS:
                break
            paying.append(rank)
        return paying[:: -(-len(paying) // CP_RANKS)] if paying else []

    def _fit(self, rank: int) -> Canonical | None:
        if rank not in self._fits:
            self._fits[rank] = canonical(self._weight, rank)
        return self._fits[rank]


SPLITS: dict[Kind, type[Split]] = {
    "svd": _Svd,
    "embedding": _Svd,
    "tucker2": _Tucker2,
    "spatial": _Spatial,
    "cp": _Cp,
}
