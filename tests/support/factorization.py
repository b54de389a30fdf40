"""What `factorize` plans by energy alone, without a stage around it."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from potstill.stages.factorization.layers import Costs, Plan, candidates, plans
from potstill.stages.factorization.ranks import Kind


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
    return plans(model, {path: layer.of_energy(energy) for path, layer in layers.items()}, Costs(model, inputs, ignore))
