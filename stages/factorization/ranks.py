"""Which factors a layer gets: by the energy they keep, by a share of its cost, by the noise in it, or by a budget."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from ...pipeline.factors import Factors, factored
from .metric import Metric
from .splits import SPLITS, Kind, Ranks, Split

SEARCH_STEPS = 12
"""Halvings of the interval of energies: to a four-thousandth."""


class LayerRanks:
    """The factors of one layer for any energy; what is costly is computed once."""

    def __init__(self, layer: nn.Module, kinds: Sequence[Kind], round_to: int, metric: Metric | None = None) -> None:
        """The `kinds` are all for such a layer. Without a metric, the weight's own error counts."""
        self.kinds = kinds
        self._layer = layer
        self._round_to = round_to
        self._metric = metric

    def in_metric(self, metric: Metric) -> "LayerRanks":
        """The same layer, the error of whose output counts instead of that of its weight."""
        return LayerRanks(self._layer, self.kinds, self._round_to, metric)

    def of_energy(self, share: float) -> Factors | None:
        """The cheapest kind that keeps this share of the squared norm; None where none that pays does."""
        return self._cheapest((kind, split.of_energy(share)) for kind, split in self._splits.items())

    def of_noise(self) -> Factors | None:
        """The ranks that stand out of the noise, in the cheapest kind; None where none that pays holds them."""
        return self._cheapest((kind, split.of_noise()) for kind, split in self._splits.items())

    def energy(self, factors: Factors) -> float:
        """The share of the squared norm, of the weight or in the metric, that the factors keep."""
        return self._splits[factors.kind].energy(factors.ranks)

    @torch.no_grad()
    def built(self, factors: Factors, path: str) -> nn.Sequential:
        """The factors with the weights that come nearest to the layer, and its bias."""
        layer = self._layer
        sequence = factored(layer, factors, path)
        first, *others = self._splits[factors.kind].weights(factors.ranks)
        weights = [first if self._metric is None else self._metric.unwhitened(first), *others]
        if isinstance(layer, nn.Embedding):
            weights[0] = _with_padding(weights[0].T, layer)
        for part, values in zip(sequence, weights, strict=True):
            assert isinstance(part.weight, Tensor)
            part.weight.copy_(values)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            last_bias = sequence[-1].bias
            assert isinstance(last_bias, Tensor)
            last_bias.copy_(bias)
        return sequence.train(layer.training)

    @cached_property
    def _splits(self) -> dict[Kind, Split]:
        weight = self._layer.weight
        assert isinstance(weight, Tensor)
        inputs_second = weight.detach().T if isinstance(self._layer, nn.Embedding) else weight.detach()
        seen = inputs_second if self._metric is None else self._metric.whitened(inputs_second)
        stride = cast(tuple[int, int], self._layer.stride) if weight.ndim == 4 else (1, 1)
        return {kind: SPLITS[kind](seen, self._round_to, stride) for kind in self.kinds}

    def _cheapest(self, found: Iterable[tuple[Kind, Ranks | None]]) -> Factors | None:
        possible = [Factors(kind=kind, ranks=ranks) for kind, ranks in found if ranks is not None]
        return min(possible, key=lambda each: self._splits[each.kind].price(each.ranks), default=None)


def _with_padding(words: Tensor, layer: nn.Embedding) -> Tensor:
    """The narrow words, that of padding all zero where it was: rounding would let it drift off zero."""
    padding = layer.padding_idx
    if padding is not None and not layer.weight[padding].any():
        words[padding] = 0
    return words


Choice = Mapping[str, Factors | None]
"""The factors of each candidate, by path; None where it stays whole."""


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
