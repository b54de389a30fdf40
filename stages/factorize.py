"""Factorization: layers become products of thinner ones where that saves work."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, TypeAdapter, model_validator

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Factorize as FactorizeEdit
from ..pipeline.errors import StageError
from ..pipeline.factors import Factors
from .acceptance import Accept, accepted, unchanged
from .budget import OneRule, Share
from .factorization.metric import MetricName
from .factorization.splits import Kind
from .judgement import told
from .recovery import Recovery, recover
from .stage import Context, Stage

if TYPE_CHECKING:
    from torch import nn

    from .factorization.costs import Costs
    from .factorization.layers import Plan
    from .factorization.ranks import Choice, LayerRanks


class Keep(OneRule, frozen=True, extra="forbid"):
    """What decides the ranks."""

    example: ClassVar[str] = "energy: 0.9"

    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of each weight's squared Frobenius norm that its factors keep at least; of its output's, with `metric:
    outputs`."""
    macs: Share | None = None
    """The share of the model's multiply-accumulates that may be left, counted before `accept` looks at the engine; `by`
    says how layers share it."""
    ratio: Share | None = None
    """The share of its own multiply-accumulates that each layer may keep; of its own parameters, where an embedding."""
    vbmf: Literal[True] | None = None
    """Every weight keeps what stands out of its noise, by empirical variational Bayes (Nakajima et al. 2013)."""


class Factorize(Stage, frozen=True, extra="forbid"):
    """Split layers into low-rank factors where that saves work, and distil the teacher again."""

    compresses: ClassVar[bool] = True

    stage: Literal["factorize"] = "factorize"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: Keep
    """What decides the ranks, such as `{energy: 0.9}`."""
    by: Literal["energy", "sensitivity"] = "energy"
    """How layers share `keep: {macs: …}`. `energy`: the same energy for all, the most that meets it. `sensitivity`:
    each layer alone is factorized to several ranks, and those are taken that raise the loss least for what they
    save."""
    metric: MetricName = "weights"
    """Which error factors keep small: `outputs` is that of what the layer computes on training samples."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("svd", "tucker2")
    """The factors to choose from: the kind that costs least at the same energy."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Ranks are rounded up to a multiple of this, which kernels run fuller on."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay whole, such as `layer1.*`."""
    accept: Accept = "always"
    """`faster` keeps a layer factorized only where the engine of its factors is faster than the layer's own beyond
    noise, and the whole only where the model's engine is; `smaller` asks for a smaller file of the whole."""
    recover: Recovery = Recovery(epochs=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.by == "sensitivity" and self.keep.macs is None:
            raise ValueError(
                f"`by: sensitivity` shares out a budget of multiply-accumulates, and {self.keep} is none: "
                "give `keep: {macs: 0.6}`, or drop `by`"
            )
        if self.metric == "outputs" and self.keep.vbmf:
            raise ValueError(
                "`keep: {vbmf: true}` looks for noise of equal strength in the weights, which `metric: outputs` would "
                "scale: give `keep: {energy: 0.9}` or another rule, or drop `metric`"
            )
        if "embedding" in self.kinds and (self.keep.macs is not None or self.accept == "faster"):
            asked = "`accept: faster`" if self.accept == "faster" else str(self.keep)
            raise ValueError(
                f"factors of an embedding save bytes and add multiply-accumulates to a mere look-up, so {asked} is not "
                "for them: give them a `factorize` stage of their own, with `kinds: [embedding]`, `keep: {ratio: 0.5}` "
                "and `accept: smaller` or none"
            )
        return self

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with its paying layers factorized and trained on; the same artifact where none pays."""
        from .factorization.confirmation import confirmed
        from .factorization.costs import Costs
        from .factorization.layers import applied, plans

        inputs = context.data.example()
        layers = self._candidates(artifact.model, context)
        costs = Costs(artifact.model, inputs, self.ignore)
        choice = self._choice(artifact.model, layers, costs, context)
        others = "other layers save enough, and raise the loss less" if self.by == "sensitivity" else None
        planned = plans(layers, choice, costs, whole_because=others)
        if self.accept == "faster":
            planned = confirmed(artifact.model, planned, context)
        context.journal.fact("layers", [plan.fact() for plan in planned])
        paying = [plan for plan in planned if plan.pays]
        context.journal.fact("factorized layers", f"{len(paying)} of {len(planned)}")
        if not paying:
            unchanged("NOTHING FACTORIZED", self._nothing_pays(planned), context)
            return artifact
        model = applied(artifact.model, paying, inputs)
        edit = FactorizeEdit(layers={plan.path: plan.factors for plan in paying if plan.factors})
        factorized = replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
        if not accepted(artifact, factorized, self.accept, context):
            return artifact
        return recover(factorized, self.recover, context)

    @property
    def decides_by_engine(self) -> bool:
        """When the engine has to be faster or smaller."""
        return self.accept != "always"

    def _candidates(self, model: "nn.Module", context: Context) -> "dict[str, LayerRanks]":
        """The layers that can be factorized. Raises StageError where there are none; the others are named as a fact."""
        from .factorization.candidates import candidates, left_alone
        from .factorization.metric import metrics

        inputs = context.data.example()
        others = left_alone(model, inputs, self.kinds)
        context.journal.fact("energy of", self.metric)
        context.journal.fact("left alone", [f"{path}: {reason}" for path, reason in others.items()])
        layers = candidates(model, inputs, self.kinds, self.round_to)
        if not layers:
            raise StageError(
                f"{self.step_name}: the model has no layer to factorize by {', '.join(self.kinds)}"
                f"{''.join(f'; {path}: {reason}' for path, reason in others.items())}. "
                "Mend: drop the stage, or give more `kinds`"
            )
        if self.metric == "weights":
            return layers
        found = metrics(model, layers, context)
        return {path: layer.in_metric(found[path]) if path in found else layer for path, layer in layers.items()}

    def _choice(
        self, model: "nn.Module", layers: "Mapping[str, LayerRanks]", costs: "Costs", context: Context
    ) -> "Choice":
        """The factors of every layer, found once. Raises StageError where no ranks meet a budget."""
        if self.by == "sensitivity":
            return self._by_sensitivity(model, layers, costs, context)
        kept = TypeAdapter(dict[str, Factors | None])

        def decide() -> JsonValue:
            return kept.dump_python(dict(self._by_energy(layers, costs)), mode="json")

        return kept.validate_python(context.decided("ranks", decide))

    def _by_energy(self, layers: "Mapping[str, LayerRanks]", costs: "Costs") -> "Choice":
        from .factorization.ranks import within_budget, within_ratio

        keep = self.keep
        if keep.vbmf:
            return {path: layer.of_noise() for path, layer in layers.items()}
        if keep.energy is not None:
            return {path: layer.of_energy(keep.energy) for path, layer in layers.items()}
        if keep.ratio is not None:
            return within_ratio(layers, keep.ratio, costs.shares)
        assert keep.macs is not None
        choice = within_budget(layers, keep.macs, costs.share_of_model)
        if choice is None:
            least = costs.share_of_model({path: layer.of_energy(0) for path, layer in layers.items()})
            raise StageError(self._out_of_reach(keep.macs, least))
        return choice

    def _by_sensitivity(
        self, model: "nn.Module", layers: "Mapping[str, LayerRanks]", costs: "Costs", context: Context
    ) -> "Choice":
        from .factorization.sensitivity import FactorSensitivity, most_saved, of_least_rise, sensitivities

        rows = TypeAdapter(list[FactorSensitivity])

        def measure() -> JsonValue:
            return rows.dump_python(sensitivities(model, layers, costs, context), mode="json")

        measured = rows.validate_python(context.decided("sensitivity", measure))
        context.journal.fact("sensitivity", told(measured, context))
        assert self.keep.macs is not None
        choice = of_least_rise(measured, layers, (1 - self.keep.macs) * costs.macs)
        if choice is None:
            raise StageError(self._out_of_reach(self.keep.macs, 1 - most_saved(measured) / costs.macs))
        return choice

    def _out_of_reach(self, share: float, least: float) -> str:
        return (
            f"{self.step_name}: cannot get down to {share:.1%} of the multiply-accumulates: with ranks of "
            f"{self.round_to} in every layer that can be factorized, {least:.1%} remain. "
            f"Mend: `keep: {{macs: {ceil(least * 1000) / 1000}}}` or more, or a lower `round_to`"
        )

    def _nothing_pays(self, planned: "Sequence[Plan]") -> str:
        cheaper = sum(plan.factors is not None and plan.costs_less for plan in planned)
        if self.accept == "faster" and cheaper:
            return (
                f"{cheaper} layers' factors take fewer multiply-accumulates, but the engine of none is faster than the "
                "layer's own; a lower number in `keep` lowers ranks"
            )
        return f"with {self.keep} no layer's factors cost less than the layer; a lower number in `keep` lowers ranks"

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same budget, not trained on; layers share it by their weights alone, whose spectra are still flat."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        untrained = {"recover": recovery, "accept": "always", "by": "energy", "metric": "weights"}
        return self.model_copy(update=untrained)
