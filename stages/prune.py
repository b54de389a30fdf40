"""Pruning: whole channels removed from all layers that share them, proven, then trained back."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from math import ceil
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, model_validator
from torch import nn

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import layer_sizes
from ..pipeline.errors import StageError
from .acceptance import Accept, accepted
from .pruning.groups import Criterion, Grouping, channel_groups
from .pruning.latency import Trial, best_of, trials_for
from .pruning.proof import prove
from .pruning.search import Cut, Search, blocks
from .pruning.selection import ignored_paths
from .recovery import Recovery, calibrated_anew, recover
from .stage import Context, Stage

Share = Annotated[float, Field(gt=0, lt=1)]


class Budget(BaseModel):
    """What may be left: a share of one measure of the model as the stage finds it; the cut ends at it or just below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: Share | None = None
    """Of the outputs of all convolutions and linear layers but the last."""
    macs: Share | None = None
    """Of the multiply-accumulates of all convolutions and linear layers."""
    parameters: Share | None = None
    """Of the elements of all parameters."""
    latency: Share | None = None
    """Of the measured p50 of the engine for the first target, at its first batch size; fp32 unless the model is already
    quantized. Found by building and timing engines, about log2 of the number of blocks of channels."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = list(self._given())
        if len(given) != 1:
            said = " and ".join(given) or "none"
            raise ValueError(
                "give exactly one of `channels`, `macs`, `parameters` and `latency`, such as `keep: {macs: 0.5}`; "
                f"given: {said}"
            )
        return self

    def _given(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)

    @property
    def measure(self) -> str:
        """What the budget is counted in."""
        return next(iter(self._given()))

    @property
    def share(self) -> float:
        """How much of it may be left."""
        return self._given()[self.measure]


class Prune(Stage, frozen=True, extra="forbid"):
    """Cut the least important channels until a budget of MACs, parameters or channels is met, and distil again."""

    compresses: ClassVar[bool] = True

    stage: Literal["prune"] = "prune"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: Budget
    """What may be left, such as `{macs: 0.5}`."""
    criterion: Criterion = "l2"
    """Importance of a channel: the norm of its weights in all layers that share it; `taylor`: |weight · gradient|."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Channel counts are cut to multiples of this, which kernels run fuller on; a layer keeps at least as many."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that lose no output channels, such as `layer1.*`."""
    accept: Accept = "always"
    """`faster` or `smaller` undoes the cut where the engine is not, beyond noise, what is said here."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact at or just below its budget, proven to be a part of the original, and trained on.

        Raises StageError where the budget cannot be met, and says what can.
        """
        inputs = context.data.example()
        # Torch-Pruning passes over parameters without gradients in silence; in the copy none is frozen.
        model = deepcopy(artifact.model).eval().requires_grad_(requires_grad=True)
        grouping = self._grouping(model, context)
        search = Search(model, inputs, grouping, blocks(grouping.groups, self.round_to))
        found = self._found(search, grouping, artifact, context)
        prove(model, found.model, found.kept, inputs)
        self._record(model, search, found, grouping, context)
        pruned = self._with(found, artifact)
        if not accepted(artifact, pruned, self.accept, context):
            return artifact
        return recover(pruned, self.recover, context)

    @property
    def decides_by_engine(self) -> bool:
        """With a budget of latency, or when the engine has to be faster."""
        return self.keep.measure == "latency" or self.accept != "always"

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same budget by weights alone, not trained on; one of latency, which takes minutes, as one of MACs."""
        criterion = "l2" if self.criterion == "taylor" else self.criterion
        keep = Budget(macs=self.keep.share) if self.keep.measure == "latency" else self.keep
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"criterion": criterion, "keep": keep, "accept": "always", "recover": recovery})

    def _found(self, search: Search, grouping: Grouping, artifact: Artifact, context: Context) -> Cut:
        """The cut that meets the budget. Raises StageError where none does."""
        if self.keep.measure == "latency":
            return self._found_by_engine(search, grouping, artifact, context)
        found = search.smallest(self.keep.measure, self.keep.share)
        if found is None:
            raise StageError(self._out_of_reach(search, grouping))
        return found

    def _found_by_engine(self, search: Search, grouping: Grouping, artifact: Artifact, context: Context) -> Cut:
        def measure() -> JsonValue:
            with context.bench.beside(artifact) as beside:
                made = trials_for(
                    self.keep.share,
                    search.num_blocks,
                    lambda count: beside(calibrated_anew(self._with(search.cut(count), artifact), context)),
                )
            return [trial.model_dump() for trial in made]

        context.progress.say(f"{self.step_name}: builds and times engines for {context.bench.label}")
        trials = TypeAdapter(list[Trial]).validate_python(context.decided("latency", measure))
        context.journal.fact("timed on", context.bench.label)
        context.journal.fact("engines timed", [trial.model_dump() for trial in trials])
        best = best_of(trials, self.keep.share)
        if best is None:
            raise StageError(self._too_slow(trials, grouping, context))
        return search.cut(best.blocks_removed)

    def _with(self, found: Cut, artifact: Artifact) -> Artifact:
        return replace(artifact, model=found.model, blueprint=artifact.blueprint.with_edit(found.edit))

    def _grouping(self, model: nn.Module, context: Context) -> Grouping:
        """The channels that can be cut. Raises StageError for a model without any; says which layers are left alone."""
        from .pruning.gradients import accumulate_gradients
        from .pruning.trust import trusted

        ignored = ignored_paths(model, self.ignore)
        if self.criterion == "taylor":
            accumulate_gradients(model, context)
        inputs = context.data.example()
        grouping = trusted(model, channel_groups(model, inputs, self.criterion, ignored), inputs)
        for left in grouping.left_alone:
            context.progress.say(f"{self.step_name}: {left}")
        if not grouping.groups:
            raise StageError(
                f"{self.step_name}: the model has no layer whose channels can be pruned{_reasons(grouping)}. "
                "Mend: drop the stage"
            )
        return grouping

    def _out_of_reach(self, search: Search, grouping: Grouping) -> str:
        if search.num_blocks == 0:
            return self._no_blocks(grouping)
        reached = search.cut(search.num_blocks).cost.share_of(search.uncut)[self.keep.measure]
        return (
            f"{self.step_name}: cannot get down to {self.keep.share:.1%} of the {self.keep.measure}: with only "
            f"{self.round_to} channels left wherever channels can go, {reached:.1%} remain{_reasons(grouping)}. "
            f"Mend: `keep: {{{self.keep.measure}: {ceil(reached * 1000) / 1000}}}` or more, or a lower `round_to`"
        )

    def _too_slow(self, trials: list[Trial], grouping: Grouping, context: Context) -> str:
        if not trials:
            return self._no_blocks(grouping)
        reached = min(trial.share for trial in trials)
        return (
            f"{self.step_name}: cannot get down to {self.keep.share:.1%} of the engine's latency "
            f"({context.bench.label}): with only {self.round_to} channels left wherever channels can go, "
            f"{reached:.1%} remain, since every operator has a cost of its own{_reasons(grouping)}. "
            f"Mend: `keep: {{latency: {ceil(reached * 100) / 100}}}` or more, a lower `round_to`, or fewer layers"
        )

    def _no_blocks(self, grouping: Grouping) -> str:
        return (
            f"{self.step_name}: no layer that can be pruned has more than `round_to: {self.round_to}` channels, "
            f"and so many always stay{_reasons(grouping)}. Mend: lower `round_to`, or drop the stage"
        )

    def _record(self, model: nn.Module, search: Search, found: Cut, grouping: Grouping, context: Context) -> None:
        shares = found.cost.share_of(search.uncut)
        context.journal.fact("asked", {self.keep.measure: self.keep.share})
        context.journal.fact("left", {name: round(share, 4) for name, share in shares.items()})
        context.journal.fact("criterion", self.criterion)
        context.journal.fact("layers", _layer_facts(model, search, found))
        context.journal.fact("left alone", [str(left) for left in grouping.left_alone])


def _layer_facts(model: nn.Module, search: Search, found: Cut) -> list[dict[str, str | int]]:
    before, after = layer_sizes(model), layer_sizes(found.model)
    return [
        {
            "path": path,
            "channels_before": before[path].out_channels,
            "channels_after": after[path].out_channels,
            "macs_before": macs_before,
            "macs_after": found.cost.macs_by_layer[path],
        }
        for path, macs_before in search.uncut.macs_by_layer.items()
        if path in before
    ]


def _reasons(grouping: Grouping) -> str:
    return "".join(f"; {left}" for left in grouping.left_alone)
