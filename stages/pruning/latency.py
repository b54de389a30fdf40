"""The smallest cut whose engine meets a share of the uncut model's latency, found by building and timing engines."""

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter

from ...pipeline.artifact import Artifact
from ...pipeline.bench import Beside
from ..recovery import calibrated_anew
from ..stage import Context


class Trial(BaseModel):
    """A cut that was built and timed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    blocks_removed: int
    share: float
    """Its engine's p50 over that of the uncut model's engine."""
    p50_ms: float
    uncut_p50_ms: float
    """Of the uncut engine, timed in turns with it."""


def trials_for(share: float, num_blocks: int, timed: Callable[[int], Beside]) -> list[Trial]:
    """Bisect over the number of removed blocks; the trials in the order they were made, about log2(num_blocks) of them.

    Latency falls with the blocks but for the noise and for kernels that prefer some channel counts. The bisection takes
    it as falling: what it ends with was itself timed, so it holds what it says.
    """
    found: list[Trial] = []
    low, high = 1, num_blocks
    while low <= high:
        middle = (low + high) // 2
        beside = timed(middle)
        found.append(
            Trial(
                blocks_removed=middle,
                share=beside.share,
                p50_ms=beside.candidate_ms,
                uncut_p50_ms=beside.baseline_ms,
            )
        )
        if beside.share <= share:
            high = middle - 1
        else:
            low = middle + 1
    return found


def timed_trials(
    share: float,
    num_blocks: int,
    after: Callable[[int], Artifact],
    original: Artifact,
    context: Context,
    *,
    name: str = "latency",
) -> list[Trial]:
    """Trials of the engines of `after(count)`, without so many blocks, beside `original`'s; facts of the step.

    They are made once under `name`: a step that is resumed finds them.
    """

    def measure() -> JsonValue:
        with context.bench.beside(original) as beside:
            made = trials_for(share, num_blocks, lambda count: beside(calibrated_anew(after(count), context)))
        return [trial.model_dump() for trial in made]

    context.progress.say(f"{context.step}: builds and times engines for {context.bench.label}")
    trials = TypeAdapter(list[Trial]).validate_python(context.decided(name, measure))
    context.journal.fact("timed on", context.bench.label)
    context.journal.fact("engines timed", [trial.model_dump() for trial in trials])
    return trials


def best_of(trials: list[Trial], share: float) -> Trial | None:
    """The trial with the fewest blocks removed that meets the share; None where none does."""
    meeting = [trial for trial in trials if trial.share <= share]
    return min(meeting, key=lambda trial: trial.blocks_removed, default=None)
