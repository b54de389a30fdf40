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
from .decomposition import rounded_up, svd_factors, svd_rank, tucker2_factors, tucker2_ranks


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
            "decision": "factorized" if self.pays else f"kept: {reason}",
        }


def plans(
    model: nn.Module, inputs: Mapping[str, Tensor], energy: float, round_to: int, ignore: Sequence[str]
) -> list[Plan]:
    """A plan for every linear layer and ungrouped 2-d convolution that runs, in the model's order.

    A layer called twice counts twice. Raises StageError where an `ignore` pattern matches nothing.
    """
    ignored = ignored_paths(model, ignore)
    before = macs_by_layer(model, inputs)
    shared = shared_paths(model)
    candidates: dict[str, Factors] = {}
    for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
        if path in before and _can_be_factorized(layer):
            candidates[path] = _chosen_factors(layer, energy, round_to)
    measured = deepcopy(model)
    for path, factors in candidates.items():
        if path not in shared:
            measured.set_submodule(path, factored(measured.get_submodule(path), factors, path))
    after = macs_by_layer(measured, inputs)
    found: list[Plan] = []
    for path, factors in candidates.items():
        weight = model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        found.append(
            Plan(
                path=path,
                factors=factors,
                energy=_kept_energy(weight, factors),
                macs_before=before[path],
                macs_after=sum(count for name, count in after.items() if name == path or name.startswith(f"{path}.")),
                kept_because=_reason_to_keep(path, ignored, shared),
            )
        )
    return found


def applied(model: nn.Module, chosen: Sequence[Plan], inputs: Mapping[str, Tensor], step: str) -> nn.Module:
    """A copy with the factors of the chosen layers in their places.

    Raises StageError where the model no longer runs or its MACs are not what the plans say.
    """
    factorized = deepcopy(model)
    for plan in chosen:
        layer = model.get_submodule(plan.path)
        factorized.set_submodule(plan.path, _with_weights(layer, plan).train(layer.training))
    try:
        cost = macs_by_layer(factorized, inputs)
    except Exception as error:
        raise StageError(
            f"{step}: the model does not run once its layers are factorized: {error}\n"
            "Mend: its code reaches into a layer, such as `self.layer.weight`; name that layer in `ignore`."
        ) from error
    for plan in chosen:
        count = sum(count for name, count in cost.items() if name.startswith(f"{plan.path}."))
        if count != plan.macs_after:
            raise StageError(
                f"{step}: {plan.path} costs {count:,} multiply-accumulates once factorized, where {plan.macs_after:,} "
                "were planned; how often the model calls it depends on its values. Name it in `ignore`."
            )
    return factorized


def _can_be_factorized(layer: nn.Module) -> bool:
    # Subclasses are left alone: their own forward may do more than the product.
    if type(layer) is nn.Linear:
        return True
    return type(layer) is nn.Conv2d and layer.groups == 1


def _chosen_factors(layer: nn.Module, energy: float, round_to: int) -> Factors:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if weight.ndim == 2 or weight.shape[2:] == (1, 1):
        matrix = weight.flatten(1)
        rank = rounded_up(svd_rank(matrix, energy), round_to, min(matrix.shape))
        return Factors(kind="svd", ranks=(rank,))
    rank_in, rank_out = tucker2_ranks(weight, energy)
    full_out, full_in = weight.shape[:2]
    ranks = (rounded_up(rank_in, round_to, full_in), rounded_up(rank_out, round_to, full_out))
    return Factors(kind="tucker2", ranks=ranks)


def _factor_weights(weight: Tensor, factors: Factors) -> list[Tensor]:
    """The weights of the factors in the order they run, without those of full rank that `factored` leaves out."""
    if factors.kind == "svd":
        first, second = svd_factors(weight.flatten(1), factors.ranks[0])
        trailing = (1,) * (weight.ndim - 2)
        return [first.reshape(*first.shape, *trailing), second.reshape(*second.shape, *trailing)]
    rank_in, rank_out = factors.ranks
    basis_in, basis_out, core = tucker2_factors(weight, (rank_in, rank_out))
    before = [basis_in.T[:, :, None, None]] if rank_in < weight.shape[1] else []
    after = [basis_out[:, :, None, None]] if rank_out < weight.shape[0] else []
    return [*before, core, *after]


@torch.no_grad()
def _with_weights(layer: nn.Module, plan: Plan) -> nn.Sequential:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    sequence = factored(layer, plan.factors, plan.path)
    for part, values in zip(sequence, _factor_weights(weight, plan.factors), strict=True):
        assert isinstance(part.weight, Tensor)
        part.weight.copy_(values)
    if isinstance(bias, Tensor):
        last_bias = sequence[-1].bias
        assert isinstance(last_bias, Tensor)
        last_bias.copy_(bias)
    return sequence


@torch.no_grad()
def _kept_energy(weight: Tensor, factors: Factors) -> float:
    kernel = weight.double()
    total = float(kernel.square().sum())
    if total == 0:
        return 1.0
    if factors.kind == "svd":
        first, second = svd_factors(kernel.flatten(1), factors.ranks[0])
        return 1 - float((kernel.flatten(1) - second @ first).square().sum()) / total
    basis_in, basis_out, core = tucker2_factors(kernel, (factors.ranks[0], factors.ranks[1]))
    approximation = torch.einsum("or,rshw,is->oihw", basis_out, core, basis_in)
    return 1 - float((kernel - approximation).square().sum()) / total


def _reason_to_keep(path: str, ignored: set[str], shared: set[str]) -> str | None:
    if path in ignored:
        return "named in `ignore`"
    return "shares its weight with another layer" if path in shared else None
