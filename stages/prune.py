"""Pruning: whole channels removed from all layers that share them, proven, then trained back; at once or in steps."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, TypeAdapter
from torch import nn

from ..pipeline.artifact import Artifact
from ..pipeline.errors import StageError
from .acceptance import Accept, accepted
from .budget import OneRule, Share
from .judgement import told
from .pruning.blocks import Block, Scope, blocks, by_rise, evenly, structure
from .pruning.by_time import timed
from .pruning.groups import Grouping
from .pruning.importance import NEEDS_TRAINING, Criterion, scored
from .pruning.latency import Cuts, Decision, decided
from .pruning.proof import prove
from .pruning.regularization import Regularization, Regularized, norm_share
from .pruning.search import Cut, Search, layer_facts
from .pruning.selection import ignored_paths
from .pruning.sensitivity import Sensitivity, sensitivities
from .pruning.trust import trusted
from .pruning.units import channel_groups
from .recovery import Recovery, recover
from .stage import Context, Stage


class Budget(OneRule, frozen=True, extra="forbid"):
    """What may be left: a share of one measure of the model as the stage finds it; the cut ends at it or just below."""

    example: ClassVar[str] = "macs: 0.5"

    channels: Share | None = None
    """Of the outputs of all convolutions and linear layers but the last."""
    macs: Share | None = None
    """Of the multiply-accumulates of all convolutions and linear layers."""
    parameters: Share | None = None
    """Of the elements of all parameters."""
    latency: Share | None = None
    """Of the measured p50 of the engine for the first target, at its first batch size; fp32 unless the model is already
    quantized. Found by building and timing engines, about log2 of the number of blocks of channels; a table of what
    every layer takes at other sizes, also measured, says which channels cost least for the time they save."""


class Prune(Stage, frozen=True, extra="forbid"):
    """Cut the least important channels until a budget of MACs, parameters or channels is met, and distil again."""

    compresses: ClassVar[bool] = True

    stage: Literal["prune"] = "prune"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: Budget
    """What may be left, such as `{macs: 0.5}`."""
    criterion: Criterion = "l2"
    """What makes a channel important, summed over all layers that share it: its weights, or its effect on the loss."""
    scope: Scope = "global"
    """Among which channels importances are compared, and so which layers lose more than others."""
    steps: Annotated[int, Field(ge=1)] = 1
    """How many cuts lead to the budget, each to the same share of the one before; `recover` trains after every one."""
    round_to: Annotated[int, Field(ge=1)] = 8
    """Channel counts are cut to multiples of this, which kernels run fuller on; a layer keeps at least as many."""
    heads: bool = False
    """Attention loses whole heads; otherwise it loses the same width in every head."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that lose no output channels, such as `layer1.*`."""
    accept: Accept = "always"
    """`faster` or `smaller` undoes the cut where the engine is not, beyond noise, what is said here."""
    regularize: Regularization | None = None
    """A training before the first cut that draws channels to zero; none unless given."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact at or just below its budget, proven to be a part of the original, and trained on.

        Raises StageError where the budget cannot be met, and says what can.
        """
        pruned, made = self._regularized(artifact, context), list[_Made]()
        for step in range(1, self.steps + 1):
            if made:
                pruned = recover(pruned, self.recover, context, name=f"recover-{step - 1}")
            made.append(self._cut(pruned, made, artifact, context))
            pruned = self._with(made[-1].found, pruned)
        self._record(artifact, made, context)
        if not accepted(artifact, pruned, self.accept, context):
            return artifact
        return recover(pruned, self.recover, context)

    @property
    def decides_by_engine(self) -> bool:
        """With a budget of latency, or when the engine has to be faster."""
        return self.keep.measure == "latency" or self.accept != "always"

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers, or while channels are drawn to zero."""
        yield from self.recover.named_teachers("recover")
        if self.regularize is not None:
            yield from self.regularize.named_teachers("regularize")

    def order_problem(self, earlier: Sequence[Stage]) -> str | None:
        """Channels are drawn to zero in float alone."""
        if self.regularize is not None and self.is_quantized_by(earlier):
            return "`regularize` trains a float model; put `prune` before `quantize`, or leave it out"
        return None

    def untrained(self) -> Self:
        """The same budget by weights alone, not trained on; one of latency, which takes minutes, as one of MACs."""
        criterion = "l2" if self.criterion in NEEDS_TRAINING else self.criterion
        scope = "global" if self.scope == "sensitivity" else self.scope
        keep = Budget(macs=self.keep.share) if self.keep.measure == "latency" else self.keep
        recovery = self.recover.model_copy(update={"epochs": 0})
        untrained = {"criterion": criterion, "scope": scope, "keep": keep, "accept": "always", "recover": recovery}
        return self.model_copy(update=untrained | {"regularize": None})

    def _regularized(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact after the training that draws channels to zero, where one is asked for."""
        settings = self.regularize
        if settings is None:
            return artifact
        model = deepcopy(artifact.model).eval().requires_grad_(requires_grad=True)
        grouping, ordered = self._ordered(model, 0, context)
        search = Search(model, context.data.example(), grouping, ordered)
        # Which channels a budget of latency takes is known once engines are timed, after this training.
        measure = "macs" if self.keep.measure == "latency" else self.keep.measure
        cut = search.fewest(measure, self.keep.share)
        if cut is None and (measure == self.keep.measure or not ordered):
            raise StageError(self._out_of_reach(search, self.keep.share))  # before the training, not behind it
        doomed = len(ordered) if cut is None else cut
        trained = recover(
            artifact,
            settings,
            context,
            name="regularize",
            beside=lambda objective: Regularized(objective, settings, ordered, doomed),
        )
        shares = [norm_share(each, ordered[:doomed]) for each in (artifact.model, trained.model)]
        context.journal.fact(
            "regularized",
            {"method": settings.method, "norm share of the cut before": shares[0], "norm share after": shares[1]},
        )
        return trained

    def _cut(self, artifact: Artifact, made: "list[_Made]", original: Artifact, context: Context) -> "_Made":
        """One cut of what those `made` before left. Raises StageError where its share cannot be met."""
        model = deepcopy(artifact.model).eval().requires_grad_(requires_grad=True)
        step = len(made) + 1
        share = self.keep.share ** (step / self.steps)
        grouping, ordered = self._ordered(model, step, context)
        uncut = made[0].search.uncut if made else None
        search = Search(model, context.data.example(), grouping, ordered, uncut)
        if self.keep.measure == "latency":
            cut = self._by_latency(search, artifact, made, share, original, context)
        else:
            found = search.smallest(self.keep.measure, share)
            if found is None:
                raise StageError(self._out_of_reach(search, share))
            cut = _Made(search, found)
        prove(model, cut.found.model, cut.found.kept, context.data.example())
        return cut

    def _by_latency(
        self,
        search: Search,
        artifact: Artifact,
        made: "list[_Made]",
        share: float,
        original: Artifact,
        context: Context,
    ) -> "_Made":
        """The cut whose engine meets the share of the original's latency."""
        name = f"layer-times-{len(made) + 1}"
        order = timed(search, self.scope, self.round_to, artifact.quantization, context, name=name)
        if not made:
            context.journal.fact("latency table", [row.model_dump(mode="json") for row in order.table.rows])
        search = search.along(order.blocks)
        cuts = Cuts(
            kinds=[id(block.group) for block in order.blocks],
            after=lambda removed: self._with(search.without(removed), artifact),
            saved_ms=order.saved_ms,
            share_before=made[-1].latency_share if made else 1.0,
        )
        decision = decided(share, cuts, original, context, name=f"latency-{len(made) + 1}")
        if decision.removed is None or decision.measured is None:
            raise StageError(self._too_slow(decision, search.grouping, share, context))
        return _Made(search, search.without(decision.removed), decision.measured.share)

    def _with(self, found: Cut, artifact: Artifact) -> Artifact:
        return replace(artifact, model=found.model, blueprint=artifact.blueprint.with_edit(found.edit))

    def _ordered(self, model: nn.Module, step: int, context: Context) -> tuple[Grouping, list[Block]]:
        """The channels that can be cut, in the order they go.

        Raises StageError for a model without any; says which layers are left alone.
        """
        inputs = context.data.example()
        grouping = trusted(
            model, channel_groups(model, inputs, ignored_paths(model, self.ignore), heads=self.heads), inputs
        )
        found, unjudged = scored(model, grouping, self.criterion, context)
        left_alone = (*grouping.left_alone, *unjudged)
        grouping = replace(grouping, groups=tuple(each.group for each in found), left_alone=left_alone)
        for left in left_alone if step == 1 else ():
            context.progress.say(f"{self.step_name}: {left}")
        if self.heads and step == 1 and not any(group.heads for group in grouping.groups):
            raise StageError(
                f"{self.step_name}: `heads: true`, but there is no attention that can lose a head{_reasons(grouping)}. "
                "Mend: drop `heads`, so that every head loses the same width"
            )
        if not grouping.groups:
            raise StageError(
                f"{self.step_name}: the model has no layer whose channels can be pruned{_reasons(grouping)}. "
                "Mend: drop the stage"
            )
        return grouping, self._in_scope(model, blocks(found, self.round_to, self.criterion), step, context)

    def _in_scope(self, model: nn.Module, ordered: list[Block], step: int, context: Context) -> list[Block]:
        match self.scope:
            case "global":
                return ordered
            case "uniform":
                return evenly(ordered, lambda group: group.layers)
            case "isomorphic":
                return evenly(ordered, structure(model))
            case "sensitivity":
                return by_rise(ordered, self._rises(model, ordered, step, context))

    def _rises(
        self, model: nn.Module, ordered: list[Block], step: int, context: Context
    ) -> dict[str, list[tuple[float, float]]]:
        """How the loss rises with the share of each group's channels that is gone."""

        def measure() -> JsonValue:
            return [each.model_dump() for each in sensitivities(model, ordered, context)]

        measured = TypeAdapter(list[Sensitivity]).validate_python(context.decided(f"sensitivity-{step}", measure))
        if step == 1:
            context.journal.fact("sensitivity", told(measured, context))
        rises: dict[str, list[tuple[float, float]]] = {}
        for each in measured:
            rises.setdefault(each.layer, []).append((each.removed, each.loss_rise))
        return rises

    def _out_of_reach(self, search: Search, share: float) -> str:
        grouping = search.grouping
        if search.num_blocks == 0:
            return self._no_blocks(grouping)
        reached = search.cut(search.num_blocks).cost.share_of(search.uncut)[self.keep.measure]
        return (
            f"{self.step_name}: cannot get down to {share:.1%} of the {self.keep.measure}: with only "
            f"{self.round_to} channels left wherever channels can go, {reached:.1%} remain{_reasons(grouping)}. "
            f"Mend: `keep: {{{self.keep.measure}: {ceil(reached * 1000) / 1000}}}` or more, or a lower `round_to`"
        )

    def _too_slow(self, decision: Decision, grouping: Grouping, share: float, context: Context) -> str:
        if not decision.trials:
            return self._no_blocks(grouping)
        reached = min(trial.share for trial in decision.trials)
        return (
            f"{self.step_name}: cannot get down to {share:.1%} of the engine's latency "
            f"({context.bench.label}): with only {self.round_to} channels left wherever channels can go, "
            f"{reached:.1%} remain, since every operator has a cost of its own{_reasons(grouping)}. "
            f"Mend: `keep: {{latency: {ceil(reached * 100) / 100}}}` or more, a lower `round_to`, or fewer layers"
        )

    def _no_blocks(self, grouping: Grouping) -> str:
        return (
            f"{self.step_name}: no layer that can be pruned has more than `round_to: {self.round_to}` channels, "
            f"and so many always stay{_reasons(grouping)}. Mend: lower `round_to`, or drop the stage"
        )

    def _record(self, artifact: Artifact, made: "list[_Made]", context: Context) -> None:
        uncut, last = made[0].search.uncut, made[-1]
        shares = last.found.cost.share_of(uncut)
        context.journal.fact("asked", {self.keep.measure: self.keep.share})
        context.journal.fact("left", {name: round(share, 4) for name, share in shares.items()})
        context.journal.fact("criterion", self.criterion)
        context.journal.fact("scope", self.scope)
        if self.steps > 1:
            left = [each.found.cost.share_of(uncut) for each in made]
            context.journal.fact("steps", [{"step": number, **each} for number, each in enumerate(left, 1)])
        context.journal.fact("layers", layer_facts(artifact.model, uncut, last.found))
        context.journal.fact("left alone", [str(left) for left in last.search.grouping.left_alone])


@dataclass(frozen=True)
class _Made:
    """One cut, and where it was found."""

    search: Search
    found: Cut
    latency_share: float = 1.0
    """Of the original's engine, as measured; 1 where no engine was timed."""


def _reasons(grouping: Grouping) -> str:
    return "".join(f"; {left}" for left in grouping.left_alone)
