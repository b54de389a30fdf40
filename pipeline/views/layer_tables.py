"""The layers that two engines spend different times in."""

from collections.abc import Iterator

from ...export.diagnosis import SLOWER
from ..comparison.compare import Compared
from ..comparison.layers import LEAST_SHARE, OWN, LayerComparison, LayerDifference
from . import wording
from .compare_cells import marked
from .tables import Cell, Table, figures, words

MOST_ROWS = 10
"""The largest differences; the rest is summed up."""


def layer_tables(compared: Compared) -> Iterator[Table]:
    """One for each engine whose layers can be set beside the first one's."""
    for each in compared.layers:
        if not each.reason:
            yield _table(compared, each)


def layer_sentences(compared: Compared) -> tuple[str, ...]:
    """Which layers differ most, or why there is nothing to compare."""
    return tuple(_sentence(each) for each in compared.layers)


def _sentence(layers: LayerComparison) -> str:
    pair = f"{layers.other.label} against {layers.first.label}"
    if layers.reason:
        return f"Layers of {pair}: not comparable ({layers.reason})."
    sure = layers.beyond_noise
    if not sure:
        return f"Layers of {pair}: all {len(layers.rows)} in common are within noise."
    told = (f"{_name(row)} {_change(row)}" for row in sure[:3])
    more = f" and {len(sure) - 3} more" if len(sure) > 3 else ""
    return f"Layers of {pair}: {len(sure)} of {len(layers.rows)} in common differ: {', '.join(told)}{more}."


def _table(compared: Compared, layers: LayerComparison) -> Table:
    first, other = layers.first, layers.other
    decimals = min(4, 1 + wording.decimals_for((first.latency[0].p50_ms, other.latency[0].p50_ms)))
    columns = (
        words("Layer"),
        figures(first.mark, "ms"),
        figures(other.mark, "ms"),
        figures("Difference", "ms"),
        figures("Speed", f"{first.mark} over {other.mark}"),
        words("Verdict"),
        words("Runs as"),
    )
    rows = tuple(
        tuple(marked(cell, compared, first.machine) if 0 < at < 5 else cell for at, cell in enumerate(row))
        for row in (_row(each, decimals) for each in layers.rows[:MOST_ROWS])
    )
    return Table(f"{other.label} against {first.label}", columns, rows, _note(compared, layers, decimals))


def _row(row: LayerDifference, decimals: int) -> tuple[Cell, ...]:
    ratio = wording.ratio(row.before_ms / row.after_ms) if row.after_ms else "–"
    return (
        Cell(_name(row)),
        Cell(wording.plain(row.before_ms, decimals)),
        Cell(wording.plain(row.after_ms, decimals)),
        Cell(wording.signed(row.after_ms - row.before_ms, decimals)),
        Cell(ratio),
        _verdict(row),
        Cell(_operators(row)),
    )


def _name(row: LayerDifference) -> str:
    return "the runtime's own" if row.layer == OWN else row.layer


def _verdict(row: LayerDifference) -> Cell:
    if row.verdict == "no significant difference":
        return Cell("within noise", tone="quiet")
    return Cell(row.verdict, tone="good" if row.verdict == "faster" else "bad")


def _operators(row: LayerDifference) -> str:
    before, after = ", ".join(row.before_operators), ", ".join(row.after_operators)
    return before if before == after else f"{before} → {after}"


def _change(row: LayerDifference) -> str:
    if row.verdict == "faster":
        return f"{wording.ratio(row.before_ms / row.after_ms)} faster" if row.after_ms else "gone"
    return f"{wording.ratio(row.after_ms / row.before_ms)} slower" if row.before_ms else "new"


def _note(compared: Compared, layers: LayerComparison, decimals: int) -> str:
    rest = layers.rows[MOST_ROWS:]
    more = wording.signed(sum(row.after_ms - row.before_ms for row in rest), decimals)
    cut = f" {len(rest)} more layers in common differ by {more} ms together." if rest else ""
    alone = "".join(
        f" Layers of {engine.mark} alone: {wording.plain(ms, decimals)} ms."
        for engine, ms in ((layers.first, layers.only_first_ms), (layers.other, layers.only_other_ms))
        if ms
    )
    return (
        f"Batch {layers.batch}. Shares of one profile of each engine, as parts of its p50: a profile by itself slows "
        f"small operators down. A difference under {SLOWER * (1 + compared.noise_floor):.2f} times, or under "
        f"{100 * LEAST_SHARE:g} % of the slower engine, is within noise.{cut}{alone}"
    )
