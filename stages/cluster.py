"""Sharing of weights: every layer's weights take the values of a small codebook, stored as packed numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..pipeline.artifact import Artifact
from ..pipeline.bench import Aim
from ..pipeline.sharing import MOST_CLUSTERS
from ..pipeline.sharing import Cluster as ClusterEdit
from .acceptance import Accept, accepted, unchanged
from .recovery import Recovery, recover
from .stage import Context, Stage

BITS = 4
"""Of a weight's number where the recipe says nothing."""


class Cluster(Stage, frozen=True, extra="forbid"):
    """Let the weights of each layer share a few values, and train these against the teacher."""

    compresses: ClassVar[bool] = True
    aim: ClassVar[Aim] = "size"
    keeps_sharing: ClassVar[bool] = True

    stage: Literal["cluster"] = "cluster"
    bits: Annotated[int, Field(ge=2, le=8)] | None = None
    """Of the number stored for each weight: 2 to the power of this many values a layer; 4 unless given."""
    clusters: Annotated[int, Field(ge=2, le=MOST_CLUSTERS)] | None = None
    """How many values a layer's weights take, in place of `bits`."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths whose weights keep values of their own, such as `head`."""
    accept: Accept = "always"
    """`smaller` undoes the sharing where the engine's file does not get smaller; `faster` asks for a faster engine,
    which sharing does not make: weights are unpacked when the engine is loaded."""
    recover: Recovery = Recovery(epochs=1)

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.bits is not None and self.clusters is not None:
            raise ValueError("give `bits` or `clusters`, not both: 4 bits number 16 clusters")
        return self

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with shared weights whose values were trained; the same artifact where no file gets smaller."""
        from .clustering.layers import applied, plans

        planned = plans(artifact.model, self._clusters, self.ignore)
        chosen = [plan for plan in planned if plan.shares]
        model, errors = applied(artifact.model, chosen)
        context.journal.fact("layers", [plan.fact(errors.get(plan.path)) for plan in planned])
        if not chosen:
            unchanged("NOTHING SHARED", self._nothing_chosen(len(planned)), context)
            return artifact
        before, after = 4 * sum(plan.weights for plan in planned), sum(plan.stored_bytes for plan in planned)
        context.journal.fact("layers that share values", f"{len(chosen)} of {len(planned)}")
        context.journal.fact("bytes of weights", f"{before:,} → {after:,}")
        edit = ClusterEdit(layers={plan.path: plan.codebook for plan in chosen})
        shared = replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
        if not accepted(artifact, shared, self.accept, context):
            return artifact
        return recover(shared, self.recover, context)

    @property
    def _clusters(self) -> int:
        return self.clusters or 2 ** (self.bits or BITS)

    @staticmethod
    def _nothing_chosen(layers: int) -> str:
        if not layers:
            return "the model has no convolution, linear layer or embedding with a weight of its own"
        return f"none of the {layers} layers' files would get smaller"

    @property
    def decides_by_engine(self) -> bool:
        """When the engine has to be smaller or faster."""
        return self.accept != "always"

    def order_problem(self, earlier: Sequence[Stage]) -> str | None:
        """Weights are stored as int8 codes or as numbers of codebook entries."""
        if self.is_quantized_by(earlier):
            return (
                "comes after `quantize`, which stores weights as int8 codes of one scale a channel: a codebook for the "
                "layer would take these away; keep one of the two"
            )
        return None

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same codebooks, not trained on, whatever their file's size."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"recover": recovery, "accept": "always"})
