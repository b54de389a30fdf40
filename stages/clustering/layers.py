"""Which layers' weights come to share values, and what that saves."""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...pipeline.cost import CONVOLUTIONS, TRANSPOSED
from ...pipeline.sharing import Codebook, SharedWeight, planes, share, shared_weights
from ..pruning.selection import ignored_paths, shared_paths
from .kmeans import nearest_centres

UNPACKING_BYTES = 400
"""About what the operators that unpack a layer's weight take in an engine's file: for each plane of bits, and once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What would become of the weight of one layer."""

    path: str
    weights: int
    codebook: Codebook
    kept_because: str | None = None
    """Why every weight keeps a value of its own; None where they come to share values."""

    @property
    def shares(self) -> bool:
        """Whether the layer's weights come to share values."""
        return self.kept_because is None

    @property
    def stored_bytes(self) -> int:
        """Of the weight afterwards, without what unpacks it."""
        return self.codebook.stored_bytes(self.weights) if self.shares else 4 * self.weights

    def fact(self, error: float | None) -> dict[str, Any]:
        """What the report says about the layer; `error` is the share of the squared norm that sharing changed."""
        return {
            "path": self.path,
            "weights": self.weights,
            **({"values": self.codebook.clusters} if self.shares else {}),
            **({} if error is None else {"squared_error": error}),
            "bytes_before": 4 * self.weights,
            "bytes_after": self.stored_bytes,
            "decision": "shares values" if self.shares else f"kept: {self.kept_because}",
        }


def plans(model: nn.Module, clusters: int, ignore: Sequence[str]) -> list[Plan]:
    """A plan for every convolution, linear layer and embedding, in the model's order.

    Raises StageError where an `ignore` pattern matches nothing.
    """
    ignored, tied, before = ignored_paths(model, ignore), shared_paths(model), shared_weights(model)
    found: list[Plan] = []
    for path, layer in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
        if path in before or not isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding)):
            continue
        weight = layer.weight
        assert isinstance(weight, Tensor)
        codebook = Codebook(clusters=clusters, zero=bool((weight == 0).any()))
        plan = Plan(path=path, weights=weight.numel(), codebook=codebook)
        reason = _reason_to_keep(layer, plan, ignored, tied)
        found.append(Plan(path=path, weights=plan.weights, codebook=codebook, kept_because=reason))
    return found


def _reason_to_keep(layer: nn.Module, plan: Plan, ignored: set[str], tied: set[str]) -> str | None:
    if plan.path in ignored:
        return "named in `ignore`"
    if plan.path in tied:
        return "is the weight of another layer, too"
    if parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
        return "its weight is computed from other tensors"
    if isinstance(layer, TRANSPOSED) and cast(Any, layer).groups > 1:
        return "is a grouped transposed convolution"
    num_planes = len([*planes(plan.weights, plan.codebook.bits)])
    if plan.stored_bytes + UNPACKING_BYTES * (1 + num_planes) >= 4 * plan.weights:
        return "is so small that a codebook would save nothing"
    return None


def applied(model: nn.Module, chosen: Sequence[Plan]) -> tuple[nn.Module, dict[str, float]]:
    """A copy in which the weights of the chosen layers share values, and each layer's relative squared error."""
    copy = deepcopy(model)
    errors: dict[str, float] = {}
    for plan in chosen:
        layer = copy.get_submodule(plan.path)
        before = cast(Tensor, layer.weight).detach().clone()
        share(layer, SharedWeight(before.shape, plan.codebook, _numbers(before.flatten(), plan.codebook)))
        with torch.no_grad():
            changed = (cast(Tensor, layer.weight) - before).double().square().sum()
            errors[plan.path] = float(changed / before.double().square().sum().clamp(min=1e-30))
    return copy, errors


def _numbers(weights: Tensor, codebook: Codebook) -> Tensor:
    if not codebook.zero:
        return nearest_centres(weights, codebook.clusters)
    numbers = torch.zeros(len(weights), dtype=torch.int64)
    rest = weights != 0
    numbers[rest] = 1 + nearest_centres(weights[rest], codebook.entries)
    return numbers
