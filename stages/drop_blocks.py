"""Depth: whole residual blocks taken out, proven, then the rest trained back."""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import ClassVar, Literal, Self

from pydantic import JsonValue, TypeAdapter

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import Bypass
from ..pipeline.errors import StageError
from .acceptance import Accept, accepted
from .budget import OneRule, Share
from .judgement import told
from .pruning.depth import Drop, drops, prove_without, residual_blocks, without
from .pruning.latency import best_of, timed_trials
from .pruning.selection import ignored_paths
from .recovery import Recovery, recover
from .stage import Context, Stage


class Depth(OneRule, frozen=True, extra="forbid"):
    """What may be left; the fewest blocks go that meet it."""

    example: ClassVar[str] = "macs: 0.7"

    blocks: Share | None = None
    """Of the residual blocks that can be taken out."""
    macs: Share | None = None
    """Of the model's multiply-accumulates."""
    latency: Share | None = None
    """Of the measured p50 of the engine for the first target, at its first batch size; found by building and timing
    engines."""


class DropBlocks(Stage, frozen=True, extra="forbid"):
    """Take out the residual blocks that the loss misses least until a budget is met, and distil again."""

    compresses: ClassVar[bool] = True
    keeps_sharing: ClassVar[bool] = True

    stage: Literal["drop_blocks"] = "drop_blocks"  # pyright: ignore[reportIncompatibleVariableOverride] # frozen, so a narrower type is safe
    keep: Depth
    """What may be left, such as `{macs: 0.7}`."""
    ignore: tuple[str, ...] = ()
    """Patterns of module paths that stay, such as `layer3.*`."""
    accept: Accept = "always"
    """`faster` or `smaller` undoes the cut where the engine is not, beyond noise, what is said here."""
    recover: Recovery = Recovery(epochs=1)

    def run(self, artifact: Artifact, context: Context) -> Artifact:
        """The artifact without the blocks, proven to compute what it did with their branches silent, and trained on.

        Raises StageError where no block can be taken out, or the budget cannot be met so.
        """
        inputs = context.data.example()
        ignored = ignored_paths(artifact.model, self.ignore)
        candidates = [path for path in residual_blocks(artifact.model, inputs) if path not in ignored]
        if not candidates:
            raise StageError(
                f"{self.step_name}: the model has no residual block that can be taken out: no module with parts hands "
                "its input on unchanged once its parameters are zero. Mend: drop the stage"
            )

        def measure() -> JsonValue:
            return [drop.model_dump() for drop in drops(artifact.model, candidates, context)]

        order = TypeAdapter(list[Drop]).validate_python(context.decided("drops", measure))
        context.journal.fact("sensitivity", told(order, context))
        blocks = [drop.block for drop in order[: self._count(order, artifact, context)]]
        prove_without(artifact.model, blocks, inputs)
        context.journal.fact("blocks taken out", f"{len(blocks)} of {len(candidates)}: {', '.join(blocks)}")
        shallower = self._with(artifact, blocks)
        if not accepted(artifact, shallower, self.accept, context):
            return artifact
        return recover(shallower, self.recover, context)

    @property
    def decides_by_engine(self) -> bool:
        """With a budget of latency, or when the engine has to be faster."""
        return self.keep.latency is not None or self.accept != "always"

    def earlier_steps(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Those that teach while it recovers."""
        return self.recover.named_teachers("recover")

    def untrained(self) -> Self:
        """The same budget, not trained on; one of latency, which takes minutes, as one of blocks."""
        keep = Depth(blocks=self.keep.latency) if self.keep.latency is not None else self.keep
        recovery = self.recover.model_copy(update={"epochs": 0})
        return self.model_copy(update={"keep": keep, "accept": "always", "recover": recovery})

    def _count(self, order: list[Drop], artifact: Artifact, context: Context) -> int:
        """How many of the blocks go. Raises StageError where all of them are not enough."""
        share = self.keep.share
        if self.keep.measure == "latency":
            return self._count_by_engine(order, artifact, context)
        by_blocks = [1 - number / len(order) for number in range(1, len(order) + 1)]
        left = by_blocks if self.keep.measure == "blocks" else [drop.macs_left for drop in order]
        if left[-1] > share:
            raise StageError(self._out_of_reach(left[-1]))
        return next(number for number, each in enumerate(left, 1) if each <= share)

    def _count_by_engine(self, order: list[Drop], artifact: Artifact, context: Context) -> int:
        def after(count: int) -> Artifact:
            return self._with(artifact, [drop.block for drop in order[:count]])

        trials = timed_trials(self.keep.share, len(order), after, artifact, context)
        best = best_of(trials, self.keep.share)
        if best is None:
            raise StageError(self._out_of_reach(min(trial.share for trial in trials)))
        return best.blocks_removed

    def _out_of_reach(self, reached: float) -> str:
        measure, share = self.keep.measure, self.keep.share
        return (
            f"{self.step_name}: cannot get down to {share:.1%} of the {measure}: without any of the residual blocks "
            f"that can be taken out, {reached:.1%} remain. Mend: `keep: {{{measure}: {ceil(reached * 1000) / 1000}}}` "
            "or more, and `prune` for channels"
        )

    @staticmethod
    def _with(artifact: Artifact, blocks: list[str]) -> Artifact:
        edit = Bypass(blocks=tuple(blocks))
        model = without(artifact.model, blocks).requires_grad_(requires_grad=True)
        return replace(artifact, model=model, blueprint=artifact.blueprint.with_edit(edit))
