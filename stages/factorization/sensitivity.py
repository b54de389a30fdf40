"""How the loss rises when one layer alone is factorized, and the ranks that meet a budget for the least of it."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

from pydantic import BaseModel, ConfigDict
from torch import nn

from ...pipeline.factors import FactorKind, Factors
from ..judgement import SAMPLES, judged, sampled
from ..stage import Context
from .costs import Costs
from .ranks import Choice, LayerRanks, within_ratio

LEVELS = (0.8, 0.65, 0.5, 0.35, 0.2)
"""How far each layer is factorized, as shares of its own multiply-accumulates; then to the least ranks."""


class FactorSensitivity(BaseModel):
    """One layer in one choice of factors, with everything else left whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    kind: FactorKind
    ranks: tuple[int, ...]
    macs_saved: int
    """Of one sample; more than none."""
    loss_rise: float
    """The task's mean loss on training samples, minus that of the whole model; nothing is trained in between."""
    metric: float
    """The task's metric on the same samples."""

    @property
    def factors(self) -> Factors:
        """What the layer was split into."""
        return Factors(kind=self.kind, ranks=self.ranks)


def sensitivities(
    model: nn.Module, layers: Mapping[str, LayerRanks], costs: Costs, context: Context
) -> list[FactorSensitivity]:
    """Each layer that may be factorized at each of LEVELS where that saves work, on samples validation never sees."""
    samples = list(sampled(context, SAMPLES, context.data.batch_size, "sensitivity of layers"))
    running = deepcopy(model).to(context.device).eval()
    whole = judged(running, samples, context).loss
    found: dict[tuple[str, Factors], FactorSensitivity] = {}
    for choice in _choices(layers, costs):
        after = costs.after(choice)
        for path, factors in choice.items():
            if factors is None or (path, factors) in found:
                continue
            saved = costs.of_layer(path).macs - after[path].macs
            if saved <= 0:
                continue
            layer = running.get_submodule(path)
            running.set_submodule(path, layers[path].built(factors, path).to(context.device).eval())
            alone = judged(running, samples, context)
            running.set_submodule(path, layer)
            found[path, factors] = FactorSensitivity(
                layer=path,
                kind=factors.kind,
                ranks=factors.ranks,
                macs_saved=saved,
                loss_rise=alone.loss - whole,
                metric=alone.metric,
            )
    return sorted(found.values(), key=lambda each: list(layers).index(each.layer))


def _choices(layers: Mapping[str, LayerRanks], costs: Costs) -> list[Choice]:
    free = {path: layer for path, layer in layers.items() if costs.reason_to_keep(path) is None}
    least = {path: layer.of_energy(0) for path, layer in free.items()}
    return [*(within_ratio(free, level, costs.shares) for level in LEVELS), least]


def of_least_rise(
    measured: Sequence[FactorSensitivity], layers: Mapping[str, LayerRanks], to_save: float
) -> Choice | None:
    """Factors that save so many multiply-accumulates, for the least rise per one saved; None where all save too few.

    One layer at a time goes from what it has to any of its cheaper factors, whichever raises the loss least for what it
    saves, until enough is saved. The rises of layers are taken to add up. Layers that never come to it stay whole.
    """
    chosen: dict[str, FactorSensitivity] = {}
    while (missing := to_save - sum(each.macs_saved for each in chosen.values())) > 0:
        cheaper = [each for each in measured if each.macs_saved > _saved(chosen.get(each.layer))]
        if not cheaper:
            return None
        best = min(cheaper, key=lambda each: _price(each, chosen.get(each.layer), missing))
        chosen[best.layer] = best
    return {path: chosen[path].factors if path in chosen else None for path in layers}


def most_saved(measured: Sequence[FactorSensitivity]) -> int:
    """The multiply-accumulates that all layers' cheapest factors save together."""
    most: dict[str, int] = {}
    for each in measured:
        most[each.layer] = max(each.macs_saved, most.get(each.layer, 0))
    return sum(most.values())


def _price(new: FactorSensitivity, old: FactorSensitivity | None, missing: float) -> float:
    rise = new.loss_rise - (old.loss_rise if old else 0.0)
    # What is saved beyond the budget is worth nothing.
    saved = min(new.macs_saved - _saved(old), missing)
    # Factors that help are the better the more they help; dividing by what they save would turn that round.
    return rise / saved if rise > 0 else rise


def _saved(chosen: FactorSensitivity | None) -> int:
    return chosen.macs_saved if chosen else 0
