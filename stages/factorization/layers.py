"""Which layers of a model are worth factorizing, and putting the factors in their place."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...pipeline.blueprint import Factors, factored
from ...pipeline.cost import macs_by_layer
from ...pipeline.errors import StageError
from ..pruning.selection import ignored_paths, shared_paths
from .decomposition import spatial_factors, svd_factors, tucker2_factors
from .ranks import Choice, Kind, LayerRanks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would become of one layer, and what it would cost for one sample."""

    path: str
    factors: Factors
    energy: float
    """The share of the squared norm that the factors keep."""
    macs_before: int
    macs_after: int
    kept_because: str | None = None
    """Why the layer stays whole whatever the factors cost; None where only the cost decides."""
    engine: str | None = None
    """How the factors' engine did beside the layer's own, in words; None where it was not timed."""

    @property
    def pays(self) -> bool:
        """Whether the layer is to be factorized."""
        return self.kept_because is None and self.macs_after < self.macs_before

    def fact(self) -> dict[str, Any]:
        """What the report says about the layer."""
        reason = self.kept_because or "its factors would not cost less"
        return {
            "path": self.path,
            "kind": self.factors.kind,
            "ranks": list(self.factors.ranks),
            "energy": self.energy,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after if self.pays else self.macs_before,
            **({"engine": self.engine} if self.engine else {}),
            "decision": "factorized" if self.pays else f"kept: {reason}",
        }


def candidates(
    model: nn.Module, inputs: Mapping[str, Tensor], kinds: Sequence[Kind], round_to: int
) -> dict[str, LayerRanks]:
    """Every linear layer and ungrouped 2-d convolution that runs and that one of the kinds is for, in their order."""
    runs = macs_by_layer(model, inputs)
    layers = {
        path: LayerRanks(layer, kinds, round_to)
        for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules())
        if path in runs and _can_be_factorized(layer)
    }
    return {path: layer for path, layer in layers.items() if layer.is_candidate}


class Costs:
    """What a model costs with some of its layers factorized."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor], ignore: Sequence[str]) -> None:
        """Raises StageError where an `ignore` pattern matches nothing."""
        self._model = model
        self._inputs = inputs
        self._ignored = ignored_paths(model, ignore)
        self._shared = shared_paths(model)
        self.before = macs_by_layer(model, inputs)

    def reason_to_keep(self, path: str) -> str | None:
        """Why the layer stays whole whatever its factors cost."""
        if path in self._ignored:
            return "named in `ignore`"
        return "shares its weight with another layer" if path in self._shared else None

    def after(self, choice: Choice) -> dict[str, int]:
        """The multiply-accumulates of each layer's factors; a layer called twice counts twice.

        Raises StageError where the model does not run once those that may be are factorized.
        """
        measured = deepcopy(self._model)
        for path, factors in choice.items():
            if self.reason_to_keep(path) is None:
                measured.set_submodule(path, factored(measured.get_submodule(path), factors, path))
        cost = _macs_of_factorized(measured, self._inputs)
        return {path: _macs_within(path, cost) for path in choice}

    def shares(self, choice: Choice) -> dict[str, float]:
        """The cost of each layer's factors, as a share of the layer's."""
        return {path: macs / self.before[path] for path, macs in self.after(choice).items()}

    def share_of_model(self, choice: Choice) -> float:
        """The cost of the model with every layer factorized that costs less so, as a share of the whole model's."""
        saved = sum(max(self.before[path] - macs, 0) for path, macs in self.after(choice).items())
        return 1 - saved / max(sum(self.before.values()), 1)


def plans(model: nn.Module, choice: Choice, costs: Costs) -> list[Plan]:
    """A plan for every layer of the choice, in its order."""
    after = costs.after(choice)
    found: list[Plan] = []
    for path, factors in choice.items():
        weight = model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        found.append(
            Plan(
                path=path,
                factors=factors,
                energy=_kept_energy(weight, factors),
                macs_before=costs.before[path],
                macs_after=after[path],
                kept_because=costs.reason_to_keep(path),
            )
        )
    return found


def applied(model: nn.Module, chosen: Sequence[Plan], inputs: Mapping[str, Tensor]) -> nn.Module:
    """A copy with the factors of the chosen layers in their places; StageError where their MACs are not as planned."""
    factorized = deepcopy(model)
    for plan in chosen:
        layer = model.get_submodule(plan.path)
        factorized.set_submodule(plan.path, factors_of(layer, plan.factors, plan.path).train(layer.training))
    cost = _macs_of_factorized(factorized, inputs)
    for plan in chosen:
        count = _macs_within(plan.path, cost)
        if count != plan.macs_after:
            raise StageError(
                f"factorize: `{plan.path}` costs {count:,} multiply-accumulates, not the planned {plan.macs_after:,}: "
                "how often the model calls it depends on its values. Mend: name it in `ignore`."
            )
    return factorized


@torch.no_grad()
def factors_of(layer: nn.Module, factors: Factors, path: str) -> nn.Sequential:
    """The factors of a layer with the weights that come nearest to it."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    sequence = factored(layer, factors, path)
    for part, values in zip(sequence, _factor_weights(weight, factors), strict=True):
        assert isinstance(part.weight, Tensor)
        part.weight.copy_(values)
    if isinstance(bias, Tensor):
        last_bias = sequence[-1].bias
        assert isinstance(last_bias, Tensor)
        last_bias.copy_(bias)
    return sequence


def _macs_of_factorized(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    try:
        return macs_by_layer(model, inputs)
    except Exception as error:
        raise StageError(
            f"factorize: the model does not run once its layers are factorized: {error}\n"
            "Mend: its code reaches into a layer, such as `self.layer.weight`; name that layer in `ignore`."
        ) from error


def _macs_within(path: str, cost: Mapping[str, int]) -> int:
    return sum(count for name, count in cost.items() if name == path or name.startswith(f"{path}."))


def _can_be_factorized(layer: nn.Module) -> bool:
    # Subclasses are left alone: their own forward may do more than the product.
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv2d and layer.groups == 1


def _factor_weights(weight: Tensor, factors: Factors) -> list[Tensor]:
    """The weights of the factors in the order they run, without those of full rank that `factored` leaves out."""
    if factors.kind == "svd":
        first, second = svd_factors(weight.flatten(1), factors.ranks[0])
        trailing = (1,) * (weight.ndim - 2)
        return [first.reshape(*first.shape, *trailing), second.reshape(*second.shape, *trailing)]
    if factors.kind == "spatial":
        return [*spatial_factors(weight, factors.ranks[0])]
    rank_in, rank_out = factors.ranks
    basis_in, basis_out, core = tucker2_factors(weight, (rank_in, rank_out))
    before = [basis_in.T[:, :, None, None]] if rank_in < weight.shape[1] else []
    after = [basis_out[:, :, None, None]] if rank_out < weight.shape[0] else []
    return [*before, core, *after]


@torch.no_grad()
def _kept_energy(weight: Tensor, factors: Factors) -> float:
    kernel = weight.double()
    total = float(kernel.square().sum())
    if total == 0:
        return 1.0
    if factors.kind == "svd":
        first, second = svd_factors(kernel.flatten(1), factors.ranks[0])
        return 1 - float((kernel.flatten(1) - second @ first).square().sum()) / total
    if factors.kind == "spatial":
        vertical, horizontal = spatial_factors(kernel, factors.ranks[0])
        approximation = torch.einsum("rih,orw->oihw", vertical[..., 0], horizontal[:, :, 0])
        return 1 - float((kernel - approximation).square().sum()) / total
    basis_in, basis_out, core = tucker2_factors(kernel, (factors.ranks[0], factors.ranks[1]))
    approximation = torch.einsum("or,rshw,is->oihw", basis_out, core, basis_in)
    return 1 - float((kernel - approximation).square().sum()) / total
