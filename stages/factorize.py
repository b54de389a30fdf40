"""Factorization: layers become products of thinner ones where that saves multiply-accumulates."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Factorize as FactorizeEdit
from ..pipeline.errors import StageError
from .acceptance import Accept, accepted
from .recovery import Recovery, recover
from .stage import Context, Stage

if TYPE_CHECKING:
    from .factorization.layers import Plan


class KeptEnergy(BaseModel):
    """How much of each weight has to survive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: Annotated[float, Field(gt=0, le=1)]
    """The share of a weight's squared Frobenius norm that its factors keep at least."""


class Factorize(Stage, frozen=True, extra="forbid"):
    """Split layers into low-rank factors, SVD or Tucker-2, where that saves work, and distil the teacher again."""

    compresses: ClassVar[bool] = True

    stage: Literal["factorize"] = "factorize"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: KeptEnergy
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
        from .factorization.layers import applied, plans

        inputs = context.data.example()
        candidates = plans(artifact.model, inputs, self.keep.energy, self.round_to, self.ignore)
        if not candidates:
            raise StageError(
                f"{context.step}: the model has no linear layer and no ungrouped 2-d convolution to factorize. "
                "Mend: drop the stage"
            )
        if self.accept == "faster":
            candidates = confirmed(artifact.model, candidates, context)
        context.journal.fact("layers", [plan.fact() for plan in candidates])
        paying = [plan for plan in candidates if plan.pays]
        context.journal.fact("factorized layers", f"{len(paying)} of {len(candidates)}")
        if not paying:
            context.progress.say(f"{self.step_name}: NOTHING FACTORIZED, {self._nothing_pays(candidates)}")
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

    def _nothing_pays(self, candidates: "Sequence[Plan]") -> str:
        cheaper = sum(plan.macs_after < plan.macs_before for plan in candidates)
        if self.accept == "faster" and cheaper:
            return (
                f"{cheaper} layers' factors take fewer multiply-accumulates, but the engine of none is faster than the "
                "layer's own; the model goes on unchanged. A lower `keep.energy` lowers ranks."
            )
        return (
            f"at energy {self.keep.energy:g} no layer's factors take fewer multiply-accumulates than the layer; "
            "the model goes on unchanged. A lower `keep.energy` lowers ranks."
        )

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same factors, not trained on; on untrained weights, whose spectra are flat, few layers pay."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"recover": recovery, "accept": "always"})
