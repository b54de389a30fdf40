"""Factorization: layers become products of thinner ones where that saves multiply-accumulates."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Factorize as FactorizeEdit
from ..pipeline.errors import StageError
from .recovery import Recovery, recover
from .stage import Context, Stage


class KeptEnergy(BaseModel):
    """How much of each weight has to survive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: Annotated[float, Field(gt=0, le=1)]
    """The share of a weight's squared Frobenius norm that its factors keep at least."""


class Factorize(Stage, frozen=True, extra="forbid"):
    """Split layers into low-rank factors, SVD or Tucker-2, where that saves work, and distil the teacher again."""

    stage: Literal["factorize"] = "factorize"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: KeptEnergy
    round_to: Annotated[int, Field(ge=1)] = 8
    """Ranks are rounded up to a multiple of this, which kernels run fuller on."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay whole, such as `layer1.*`."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with its paying layers factorized and trained on; the same artifact where none pays."""
        from .factorization.layers import applied, plans

        inputs = context.data.example()
        candidates = plans(artifact.model, inputs, self.keep.energy, self.round_to, self.ignore)
        if not candidates:
            raise StageError(
                f"{context.step}: the model has no linear layer and no ungrouped 2-d convolution to factorize. "
                "Mend: drop the stage"
            )
        context.journal.fact("layers", [plan.fact() for plan in candidates])
        paying = [plan for plan in candidates if plan.pays]
        context.journal.fact("factorized layers", f"{len(paying)} of {len(candidates)}")
        if not paying:
            context.progress.say(
                f"{self.step_name}: NOTHING FACTORIZED, at energy {self.keep.energy:g} no layer's factors take fewer "
                "multiply-accumulates than the layer; the model goes on unchanged. A lower `keep.energy` lowers ranks."
            )
            return artifact
        model = applied(artifact.model, paying, inputs)
        edit = FactorizeEdit(layers={plan.path: plan.factors for plan in paying})
        factorized = replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
        return recover(factorized, self.recover, context)

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same factors, not trained on; on untrained weights, whose spectra are flat, few layers pay."""
        return self.model_copy(update={"recover": self.recover.model_copy(update={"epochs": 0})})
