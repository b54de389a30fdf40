"""What `factorize` plans by energy alone, and the factors it makes, without a stage around it."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from potstill.pipeline.factors import Factors
from potstill.stages.factorization.candidates import candidates
from potstill.stages.factorization.costs import Costs
from potstill.stages.factorization.layers import Plan, plans
from potstill.stages.factorization.metric import Metric
from potstill.stages.factorization.ranks import LayerRanks
from potstill.stages.factorization.splits import Kind


def planned(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    energy: float,
    round_to: int,
    ignore: Sequence[str] = (),
    kinds: Sequence[Kind] = ("svd", "tucker2"),
) -> list[Plan]:
    """A plan for every layer that can be factorized."""
    layers = candidates(model, inputs, kinds, round_to)
    choice = {path: layer.of_energy(energy) for path, layer in layers.items()}
    return plans(layers, choice, Costs(model, inputs, ignore))


def factors_of(layer: nn.Module, factors: Factors, metric: Metric | None = None) -> nn.Sequential:
    """The factors of a layer with the weights that come nearest to it."""
    return LayerRanks(layer, (factors.kind,), 1, metric).built(factors, "layer")
