"""Keeping a compression only where the engine confirms it."""

from typing import Literal

from pydantic import JsonValue

from ..pipeline.artifact import Artifact
from ..pipeline.bench import Beside
from .recovery import calibrated_anew
from .stage import Context

Accept = Literal["always", "faster", "smaller"]
"""What the built engine must be beside that of the model the stage was given, beyond noise; else the model goes on."""


def accepted(before: Artifact, after: Artifact, accept: Accept, context: Context) -> bool:
    """Whether `after`'s engine is what was asked for; the comparison is a fact of the step, and is made once.

    A quantized artifact's grids are calibrated first. Says loudly where the engine is not what was asked for. `always`
    asks nothing and times nothing.
    """
    if accept == "always":
        return True

    def measure() -> JsonValue:
        with context.bench.beside(before) as beside:
            return beside(calibrated_anew(after, context)).model_dump()

    # A resumed step finds the numbers of the first time.
    found = Beside.model_validate(context.decided("accept", measure))
    kept = found.verdict == "faster" if accept == "faster" else found.candidate_bytes < found.baseline_bytes
    context.journal.fact("engine", f"{context.bench.label}: {found}")
    sizes = f"{found.baseline_bytes:,} → {found.candidate_bytes:,} bytes"
    if kept:
        context.journal.fact("accepted", f"the engine is {accept}: {found}; {sizes}")
    else:
        reason = f"`accept: {accept}` asked for a {accept} engine: {found}; {sizes} ({context.bench.label})"
        context.journal.fact("undone", reason)
        context.progress.say(f"{context.step}: UNDONE, the model goes on as it came: {reason}")
    return kept


def unchanged(what: str, reason: str, context: Context) -> None:
    """Say loudly, and in the report's first lines, that a stage found nothing to change: `what`, and why."""
    context.journal.fact("changed nothing", reason)
    context.progress.say(f"{context.step}: {what}, the model goes on as it came: {reason}")
