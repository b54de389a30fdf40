"""Factorization: layers become products of thinner ones where that saves multiply-accumulates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Factorize as FactorizeEdit
from ..pipeline.errors import StageError
from .acceptance import Accept, accepted
from .budget import OneRule, Share
from .factorization.ranks import Kind
from .recovery import Recovery, recover
from .stage import Context, Stage

if TYPE_CHECKING:
    from .factorization.layers import Costs, Plan
    from .factorization.ranks import Choice, LayerRanks


class Keep(OneRule, frozen=True, extra="forbid"):
    """What decides the ranks."""

    example: ClassVar[str] = "energy: 0.9"

    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of each weight's squared Frobenius norm that its factors keep at least."""
    macs: Share | None = None
    """The share of the model's multiply-accumulates that may be left: the same energy for all layers, the most that
    meets it, so that layers lose rank where it costs little. Counted before `accept` looks at the engine."""
    ratio: Share | None = None
    """The share of its own multiply-accumulates that each layer may keep."""
    vbmf: Literal[True] | None = None
    """Every weight keeps what stands out of its noise, by empirical variational Bayes (Nakajima et al. 2013)."""


class Factorize(Stage, frozen=True, extra="forbid"):
    """Split layers into low-rank factors where that saves work, and distil the teacher again."""

    compresses: ClassVar[bool] = True

    stage: Literal["factorize"] = "factorize"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: Keep
    """What decides the ranks, such as `{energy: 0.9}`."""
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

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with its paying layers factorized and trained on; the same artifact where none pays."""
        from .factorization.confirmation import confirmed
        from .factorization.layers import Costs, applied, candidates, plans

        inputs = context.data.example()
        layers = candidates(artifact.model, inputs, self.kinds, self.round_to)
        if not layers:
            raise StageError(
                f"{context.step}: the model has no linear layer and no ungrouped 2-d convolution to factorize by "
                f"{', '.join(self.kinds)}. Mend: drop the stage, or give more `kinds`"
            )
        costs = Costs(artifact.model, inputs, self.ignore)
        planned = plans(artifact.model, self._choice(layers, costs), costs)
        if self.accept == "faster":
            planned = confirmed(artifact.model, planned, context)
        context.journal.fact("layers", [plan.fact() for plan in planned])
        paying = [plan for plan in planned if plan.pays]
        context.journal.fact("factorized layers", f"{len(paying)} of {len(planned)}")
        if not paying:
            context.progress.say(f"{self.step_name}: NOTHING FACTORIZED, {self._nothing_pays(planned)}")
            return artifact
        model = applied(artifact.model, paying, inputs)
        edit = FactorizeEdit(layers={plan.path: plan.factors for plan in paying})
        factorized = replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
        if not accepted(artifact, factorized, self.accept, context):
            return artifact
        return recover(factorized, self.recover, context)

    @property
    def decides_by_engine(self) -> bool:
        """When the engine has to be faster or smaller."""
        return self.accept != "always"

    def _choice(self, layers: "Mapping[str, LayerRanks]", costs: "Costs") -> "Choice":
        """The factors of every layer. Raises StageError where no ranks meet a budget."""
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
            raise StageError(
                f"{self.step_name}: cannot get down to {keep.macs:.1%} of the multiply-accumulates: with ranks of "
                f"{self.round_to} in every layer that can be factorized, {least:.1%} remain. "
                f"Mend: `keep: {{macs: {ceil(least * 1000) / 1000}}}` or more, or a lower `round_to`"
            )
        return choice

    def _nothing_pays(self, planned: "Sequence[Plan]") -> str:
        cheaper = sum(plan.macs_after < plan.macs_before for plan in planned)
        if self.accept == "faster" and cheaper:
            return (
                f"{cheaper} layers' factors take fewer multiply-accumulates, but the engine of none is faster than the "
                "layer's own; the model goes on unchanged. A lower number in `keep` lowers ranks."
            )
        return (
            f"with {self.keep} no layer's factors take fewer multiply-accumulates than the layer; "
            "the model goes on unchanged. A lower number in `keep` lowers ranks."
        )

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same factors, not trained on; on untrained weights, whose spectra are flat, few layers pay."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"recover": recovery, "accept": "always"})
