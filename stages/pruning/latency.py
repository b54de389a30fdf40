"""The smallest cut whose engine meets a share of the uncut model's latency, found by building and timing engines."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, JsonValue

from ...pipeline.artifact import Artifact
from ...pipeline.bench import Beside
from ..recovery import calibrated_anew
from ..stage import Context

WITHIN = 0.05
"""How far what was measured may be from what was asked, relative to it, before the run looks further, and says so."""

FINER_SEARCHES = 3

Removed = tuple[int, ...]
"""Places in the order in which things go, ascending."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Frozen):
    """A cut that was built and timed."""

    blocks_removed: int
    predicted: float | None
    """The share that the latency table foretold."""
    share: float
    """Its engine's p50 over that of the uncut model's engine."""
    p50_ms: float
    uncut_p50_ms: float
    """Of the uncut engine, timed in turns with it."""


class Decision(_Frozen):
    """What goes, and the engines that said so."""

    removed: Removed | None
    """None where nothing meets the share."""
    measured: Trial | None
    """The chosen cut built and timed once more: of many trials the chosen one is likelier to have looked too fast."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Cuts:
    """What can go, in the order it should."""

    kinds: Sequence[Hashable]
    """For each place, what it is a piece of; pieces of one kind go one after the other."""
    after: Callable[[Removed], Artifact]
    saved_ms: Callable[[Removed], float]
    """By the latency table."""
    share_before: float = 1.0
    """Of the original's latency, when nothing is removed here."""


def decided(share: float, cuts: Cuts, original: Artifact, context: Context, *, name: str = "latency") -> Decision:
    """The cut that meets `share` of the latency of `original`'s engine; its engines are facts of the step.

    It is made once under `name`: a step that is resumed finds it. Says loudly where it misses what was asked.
    """

    def measure() -> JsonValue:
        with context.bench.beside(original) as beside:
            found = decide(share, cuts, lambda removed: beside(calibrated_anew(cuts.after(removed), context)))
        return found.model_dump(mode="json")

    context.progress.say(f"{context.step}: builds and times engines for {context.bench.label}")
    decision = Decision.model_validate(context.decided(name, measure))
    context.journal.fact("timed on", context.bench.label)
    context.journal.fact("engines timed", [trial.model_dump() for trial in decision.trials])
    final = decision.measured
    if final is not None:
        predicted = {} if final.predicted is None else {"predicted by the table": final.predicted}
        context.journal.fact("latency", {"asked": share, **predicted, "measured": final.share})
        if abs(final.share / share - 1) > WITHIN:
            context.progress.say(
                f"{context.step}: the engine takes {final.share:.1%} of the latency, asked were {share:.1%}: no cut "
                "that was timed came nearer. A lower `round_to` gives finer cuts; a busy machine gives rough times"
            )
    return decision


def decide(share: float, cuts: Cuts, timed: Callable[[Removed], Beside]) -> Decision:
    """Bisect over how many go; where the last one overshoots, pass over what it is a piece of and look for finer ones.

    Latency falls with what is removed but for the noise and for kernels that prefer some channel counts. The bisection
    takes it as falling: what it ends with was itself timed, so it holds what it says.
    """
    search = _Search(share, cuts, timed)
    best = search.fewest((), range(len(cuts.kinds)))
    passed_over: set[Hashable] = set()
    for _ in range(FINER_SEARCHES):
        if best is None or search.share_of(best) >= share * (1 - WITHIN):
            break
        passed_over.add(cuts.kinds[best[-1]])
        finer = search.finer(best, passed_over)
        if finer is None or search.share_of(finer) <= search.share_of(best):
            break
        best = finer
    return Decision(removed=best, measured=None if best is None else search.time(best), trials=tuple(search.trials))


class _Search:
    """Trials of cuts, each timed once."""

    def __init__(self, share: float, cuts: Cuts, timed: Callable[[Removed], Beside]) -> None:
        self.trials: list[Trial] = []
        self._share = share
        self._cuts = cuts
        self._timed = timed
        self._shares: dict[Removed, float] = {}

    def time(self, removed: Removed) -> Trial:
        """Build and time the engine of a cut."""
        found = self._timed(removed)
        return Trial(
            blocks_removed=len(removed),
            predicted=self._cuts.share_before - self._cuts.saved_ms(removed) / found.baseline_ms,
            share=found.share,
            p50_ms=found.candidate_ms,
            uncut_p50_ms=found.baseline_ms,
        )

    def share_of(self, removed: Removed) -> float:
        """The measured share; timed where it was not yet."""
        if removed not in self._shares:
            trial = self.time(removed)
            self.trials.append(trial)
            self._shares[removed] = trial.share
        return self._shares[removed]

    def fewest(self, base: Removed, others: Sequence[int]) -> Removed | None:
        """`base` with the fewest of the first `others` that meet the share; None where all of them do not."""
        best: Removed | None = None
        low, high = 1, len(others)
        while low <= high:
            middle = (low + high) // 2
            trial = (*base, *others[:middle])
            if self.share_of(trial) <= self._share:
                best, high = trial, middle - 1
            else:
                low = middle + 1
        return best

    def finer(self, found: Removed, passed_over: set[Hashable]) -> Removed | None:
        """Instead of the last piece, which saved too much, later ones of other kinds that save no more than it.

        With the piece go those of its kind right before it that the table says save nothing without it.
        """
        kinds, saved_ms = self._cuts.kinds, self._cuts.saved_ms
        base = found[:-1]
        too_much = saved_ms(found) - saved_ms(base)
        while base and kinds[base[-1]] == kinds[found[-1]] and saved_ms(base) - saved_ms(base[:-1]) < too_much / 10:
            base = base[:-1]
        later = [place for place in range(found[-1] + 1, len(kinds)) if kinds[place] not in passed_over]
        most, count = saved_ms(found), 0
        while count < len(later) and saved_ms((*base, *later[: count + 1])) <= most:
            count += 1
        return self.fewest(base, later[:count])
