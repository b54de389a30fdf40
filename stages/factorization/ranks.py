"""Which factors a layer gets: by the energy they keep, by a share of its cost, by the noise in it, or by a budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal, cast

from torch import Tensor, nn

from ...pipeline.blueprint import Factors
from .decomposition import cheapest_tucker2_ranks, energies, rank_of_energy, rounded_up, tucker2_energies, unfolded
from .variational import vbmf_rank

Kind = Literal["svd", "tucker2", "spatial"]
"""`svd`: of linear layers and 1×1 convolutions; `tucker2`: 1×1, k×k, 1×1 (Kim et al. 2016, arXiv 1511.06530);
`spatial`: k×1, then 1×k (Jaderberg et al. 2014, arXiv 1405.3866)."""

SEARCH_STEPS = 12
"""Halvings of the interval of energies: to a four-thousandth."""


class LayerRanks:
    """The factors of one layer for any energy; what is costly is computed once."""

    def __init__(self, layer: nn.Module, kinds: Sequence[Kind], round_to: int) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self._weight = weight.detach()
        self._round_to = round_to
        is_matrix = weight.ndim == 2 or weight.shape[2:] == (1, 1)
        of_layer: tuple[Kind, ...] = ("svd",) if is_matrix else ("tucker2", "spatial")
        self._kinds: list[Kind] = [kind for kind in of_layer if kind in kinds]
        self._stride: tuple[int, ...] = () if weight.ndim == 2 else cast(tuple[int, int], layer.stride)

    @property
    def is_candidate(self) -> bool:
        """Whether any of the kinds is for such a layer."""
        return bool(self._kinds)

    def of_energy(self, share: float) -> Factors:
        """The cheapest kind that keeps this share of the squared norm."""
        return min((self._of_kind(kind, share) for kind in self._kinds), key=self._price)

    def of_noise(self) -> Factors:
        """The ranks that stand out of the noise, in the cheapest kind."""
        return min((self._above_noise(kind) for kind in self._kinds), key=self._price)

    def _of_kind(self, kind: Kind, share: float) -> Factors:
        if kind == "tucker2":
            ranks = cheapest_tucker2_ranks(
                self._tucker2_energies,
                share,
                math.prod(self._weight.shape[2:]),
                self._round_to,
                math.prod(self._stride),
            )
            return Factors(kind=kind, ranks=ranks)
        return Factors(kind=kind, ranks=(self._rounded(rank_of_energy(self._matrix_energies[kind], share), kind),))

    def _above_noise(self, kind: Kind) -> Factors:
        if kind == "tucker2":
            size_out, size_in = self._weight.shape[:2]
            rank_in, rank_out = (vbmf_rank(unfolded(self._weight, mode)) for mode in (1, 0))
            ranks = rounded_up(rank_in, self._round_to, size_in), rounded_up(rank_out, self._round_to, size_out)
            return Factors(kind=kind, ranks=ranks)
        return Factors(kind=kind, ranks=(self._rounded(vbmf_rank(self._matrix(kind)), kind),))

    def _rounded(self, rank: int, kind: Kind) -> int:
        return rounded_up(rank, self._round_to, min(self._matrix(kind).shape))

    def _matrix(self, kind: Kind) -> Tensor:
        return self._weight.flatten(1) if kind == "svd" else unfolded(self._weight, "spatial")

    @cached_property
    def _matrix_energies(self) -> dict[Kind, Tensor]:
        return {kind: energies(self._matrix(kind)) for kind in self._kinds if kind != "tucker2"}

    @cached_property
    def _tucker2_energies(self) -> Tensor:
        return tucker2_energies(self._weight)

    def _price(self, factors: Factors) -> float:
        """Multiply-accumulates for one position of the output, all but the input's borders counted."""
        size_out, size_in, *window = self._weight.shape
        if factors.kind == "svd":
            return factors.ranks[0] * (size_in + size_out)
        if factors.kind == "spatial":
            # The first factor has the stride of the rows alone.
            return factors.ranks[0] * (size_in * window[0] * math.prod(self._stride[1:]) + size_out * window[1])
        rank_in, rank_out = factors.ranks
        before = math.prod(self._stride) * size_in * rank_in if rank_in < size_in else 0
        return before + rank_in * rank_out * math.prod(window) + (rank_out * size_out if rank_out < size_out else 0)


Choice = Mapping[str, Factors]
"""The factors of each candidate, by path."""


def within_ratio(
    layers: Mapping[str, LayerRanks], ratio: float, cost: Callable[[Choice], Mapping[str, float]]
) -> Choice:
    """The most energy for every layer whose factors cost at most `ratio` of the layer; the least ranks where none do.

    `cost` says what the factors of a choice cost, each as a share of its layer's cost.
    """
    low, high = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 1.0)
    for _ in range(SEARCH_STEPS):
        middle = {path: (low[path] + high[path]) / 2 for path in layers}
        shares = cost({path: layer.of_energy(middle[path]) for path, layer in layers.items()})
        for path, share in shares.items():
            (low if share <= ratio else high)[path] = middle[path]
    return {path: layer.of_energy(low[path]) for path, layer in layers.items()}


def within_budget(layers: Mapping[str, LayerRanks], share: float, cost: Callable[[Choice], float]) -> Choice | None:
    """The most energy, the same for all layers, at which the model costs at most `share`; None where none does.

    A layer of flat spectrum so keeps more of its rank than one that loses little by a low one.
    """
    energy = _most_energy(lambda energy: cost(_at(layers, energy)) <= share)
    return None if energy is None else _at(layers, energy)


def _at(layers: Mapping[str, LayerRanks], energy: float) -> Choice:
    return {path: layer.of_energy(energy) for path, layer in layers.items()}


def _most_energy(holds: Callable[[float], bool]) -> float | None:
    """The highest energy tried at which `holds`, by halving the interval from 0 to 1; None where it fails at 0."""
    low, high = 0.0, 1.0
    if not holds(low):
        return None
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
