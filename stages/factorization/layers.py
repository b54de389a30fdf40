"""What becomes of each layer, and putting the factors in their places."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...pipeline.errors import StageError
from ...pipeline.factors import Factors
from .costs import Costs, LayerCost, macs_of_factorized, macs_within
from .ranks import Choice, LayerRanks


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would become of one layer, and what it would cost for one sample."""

    path: str
    factors: Factors | None
    """None where no factors were found that pay."""
    ranks: LayerRanks
    before: LayerCost
    after: LayerCost
    kept_because: str | None = None
    """Why the layer stays whole whatever the factors cost; None where only the cost decides."""
    engine: str | None = None
    """How the factors' engine did beside the layer's own, in words; None where it was not timed."""

    @property
    def pays(self) -> bool:
        """Whether the layer is to be factorized: for fewer multiply-accumulates, an embedding for fewer parameters."""
        return self.kept_because is None and self.costs_less

    @property
    def costs_less(self) -> bool:
        """Whether the factors cost less than the layer, of what such a layer costs."""
        if self.before.macs == 0:
            return self.after.parameters < self.before.parameters
        return self.after.macs < self.before.macs

    def sequence(self) -> nn.Sequential:
        """The factors with their weights."""
        assert self.factors is not None
        return self.ranks.built(self.factors, self.path)

    def fact(self) -> dict[str, Any]:
        """What the report says about the layer."""
        after = self.after if self.pays else self.before
        return {
            "path": self.path,
            **self._chosen(),
            "macs_before": self.before.macs,
            "macs_after": after.macs,
            "parameters_before": self.before.parameters,
            "parameters_after": after.parameters,
            **({"engine": self.engine} if self.engine else {}),
            "decision": "factorized"
            if self.pays
            else f"kept: {self.kept_because or 'its factors would not cost less'}",
        }

    def _chosen(self) -> dict[str, Any]:
        if self.factors is None:
            return {}
        kept = self.ranks.energy(self.factors)
        return {"kind": self.factors.kind, "ranks": list(self.factors.ranks), "energy": kept}


def plans(
    layers: Mapping[str, LayerRanks], choice: Choice, costs: Costs, *, whole_because: str | None = None
) -> list[Plan]:
    """A plan for every layer of the choice, in its order; `whole_because` says why one has no factors in it."""
    after = costs.after(choice)

    def reason(path: str) -> str | None:
        if choice[path] is not None:
            return costs.reason_to_keep(path)
        no_ranks = f"no {' or '.join(layers[path].kinds)} factors of lower cost keep so much"
        return costs.reason_to_keep(path) or whole_because or no_ranks

    return [
        Plan(
            path=path,
            factors=factors,
            ranks=layers[path],
            before=costs.of_layer(path),
            after=after[path],
            kept_because=reason(path),
        )
        for path, factors in choice.items()
    ]


def applied(model: nn.Module, chosen: Sequence[Plan], inputs: Mapping[str, Tensor]) -> nn.Module:
    """A copy with the factors of the chosen layers in their places; StageError where their MACs are not as planned."""
    factorized = deepcopy(model)
    for plan in chosen:
        factorized.set_submodule(plan.path, plan.sequence())
    cost = macs_of_factorized(factorized, inputs)
    for plan in chosen:
        count = macs_within(plan.path, cost)
        if count != plan.after.macs:
            raise StageError(
                f"factorize: `{plan.path}` costs {count:,} multiply-accumulates, not the planned {plan.after.macs:,}: "
                "how often the model calls it depends on its values. Mend: name it in `ignore`."
            )
    return factorized
