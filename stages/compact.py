"""Compact convolutional filters: dense k×k convolutions become depthwise separable or grouped ones."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, model_validator
from torch import nn

from ..pipeline.artifact import Artifact
from ..pipeline.compact_filters import Compact as CompactEdit
from ..pipeline.compact_filters import CompactFilter, FilterKind
from ..pipeline.cost import macs
from ..pipeline.data import Batch
from ..pipeline.errors import StageError
from ..pipeline.seeding import generator
from .acceptance import Accept, accepted, unchanged
from .budget import Share
from .judgement import SAMPLES, sampled
from .recovery import Recovery, recover
from .stage import Context, Stage

if TYPE_CHECKING:
    from .compaction.layers import Plan

GROUPS, MULTIPLIER = 2, 1
"""What is taken where the recipe says nothing."""


class Left(BaseModel, frozen=True, extra="forbid"):
    """What may be left; the fewest layers get compact filters that meet it."""

    macs: Share
    """Of the model's multiply-accumulates. Counted before `accept` looks at the engine."""


class Compact(Stage, frozen=True, extra="forbid"):
    """Replace k×k convolutions by compact ones, each fitted to the layer's outputs, and distil again."""

    compresses: ClassVar[bool] = True

    stage: Literal["compact"] = "compact"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    kind: FilterKind = "depthwise_separable"
    """What the convolutions become."""
    multiplier: Annotated[int, Field(ge=1)] = MULTIPLIER
    """For `depthwise_separable`: how many k×k filters each input channel has; k·k of them lose nothing."""
    groups: Annotated[int, Field(ge=2)] = GROUPS
    """For `grouped`: how many groups the channels fall into."""
    keep: Left | None = None
    """A budget such as `{macs: 0.6}`: those layers go first whose loss rises least for what they save. Without one,
    every layer that can be is replaced."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay dense, such as `conv1`."""
    accept: Accept = "always"
    """`faster` replaces a layer only where the engine of its compact form is faster than the layer's own beyond noise,
    and keeps the whole only where the model's engine is; `smaller` asks for a smaller file of the whole."""
    recover: Recovery = Recovery(epochs=1)

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        if self.kind == "grouped" and self.multiplier != MULTIPLIER:
            raise ValueError("`multiplier` is for `kind: depthwise_separable`; give `groups`")
        if self.kind == "depthwise_separable" and self.groups != GROUPS:
            raise ValueError("`groups` is for `kind: grouped`; give `multiplier`")
        return self

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact with compact filters, trained on; the same artifact where the engine gains nothing.

        Raises StageError where no layer can have any, or the budget cannot be met so.
        """
        from .compaction.layers import applied, confirmed, plans

        planned = plans(artifact.model, self._filters, context.data.example(), self.ignore)
        if not any(plan.is_compacted for plan in planned):
            raise StageError(f"{self.step_name}: no layer can have compact filters: {self._reasons(planned)}")
        self._check_reach(planned, macs(artifact.model, context.data.example()))
        samples = list(sampled(context, SAMPLES, context.data.batch_size, "fitting of compact filters"))
        planned, forms = self._fitted(artifact.model, planned, samples, context)
        if self.keep is not None:
            planned = self._within_budget(artifact, planned, forms, samples, context)
        if self.accept == "faster":
            planned = confirmed(artifact.model, planned, forms, context)
        chosen = [plan for plan in planned if plan.is_compacted]
        context.journal.fact("layers", [plan.fact() for plan in planned])
        context.journal.fact("compacted layers", f"{len(chosen)} of {len(planned)} convolutions")
        if not chosen:
            reason = "the engine of no layer's compact form is faster than the layer's own"
            unchanged("NOTHING COMPACTED", reason, context)
            return artifact
        edit = CompactEdit(layers={plan.path: plan.filters for plan in chosen})
        model = applied(artifact.model, planned, forms)
        compact = replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
        if not accepted(artifact, compact, self.accept, context):
            return artifact
        return recover(compact, self.recover, context)

    @property
    def _filters(self) -> CompactFilter:
        return CompactFilter(kind=self.kind, number=self.groups if self.kind == "grouped" else self.multiplier)

    @staticmethod
    def _reasons(planned: "Sequence[Plan]") -> str:
        if not planned:
            return "the model has no 2-d convolution. Mend: drop the stage"
        told = "; ".join(f"`{plan.path}` {plan.kept_because}" for plan in planned[:8])
        return f"{told}{'; …' if len(planned) > 8 else ''}. Mend: drop the stage, or change `kind` or `ignore`"

    @staticmethod
    def _fitted(
        model: nn.Module, planned: "Sequence[Plan]", samples: list[Batch], context: Context
    ) -> "tuple[list[Plan], dict[str, nn.Module]]":
        """The plans with their errors, and every candidate's compact form, nearest to the layer's own outputs."""
        from .compaction.fitting import fitted, patches_of

        moved = deepcopy(model).to(context.device).eval()
        forms: dict[str, nn.Module] = {}
        found: list[Plan] = []
        for plan in planned:
            if plan.is_compacted:
                layer = model.get_submodule(plan.path)
                assert isinstance(layer, nn.Conv2d)
                patches = patches_of(moved, plan.path, samples, generator(context.seed, "compact", plan.path))
                forms[plan.path], error = fitted(layer, plan.filters, patches, plan.path)
                plan = replace(plan, fit_error=error)
            found.append(plan)
        return found, forms

    def _within_budget(
        self,
        artifact: Artifact,
        planned: "list[Plan]",
        forms: dict[str, nn.Module],
        samples: list[Batch],
        context: Context,
    ) -> "list[Plan]":
        from .compaction.layers import loss_rises, within

        assert self.keep is not None

        def measure() -> JsonValue:
            return [*loss_rises(artifact.model, forms, samples, context)]

        rises = TypeAdapter(list[float]).validate_python(context.decided("rises", measure))
        by_path = dict(zip(forms, rises, strict=True))
        measured = [replace(plan, loss_rise=by_path.get(plan.path)) for plan in planned]
        return within(measured, self.keep.macs, macs(artifact.model, context.data.example()))

    def _check_reach(self, planned: "Sequence[Plan]", total: int) -> None:
        if self.keep is None:
            return
        reached = 1 - sum(plan.macs_before - plan.macs_after for plan in planned if plan.is_compacted) / total
        if reached > self.keep.macs:
            raise StageError(
                f"{self.step_name}: cannot get down to {self.keep.macs:.1%} of the macs: with {self.kind} filters in "
                f"every layer that can have them, {reached:.1%} remain. "
                f"Mend: `keep: {{macs: {ceil(reached * 1000) / 1000}}}` or more, and `prune` for channels"
            )

    @property
    def decides_by_engine(self) -> bool:
        """When the engine has to be faster or smaller."""
        return self.accept != "always"

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same filters, not trained on, whatever the engine does."""
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"recover": recovery, "accept": "always"})
