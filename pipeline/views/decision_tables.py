"""What a stage measured before it decided: its trials, each layer's sensitivity, and the table of layer times."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import wording
from .tables import Cell, Column, Table, figures, words

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Shown:
    """How a value of a row is headed and written."""

    column: Column
    write: Callable[[Any], str]


def _loss(value: float) -> str:
    return wording.signed(value, 4)


def _plain(value: float) -> str:
    return wording.plain(value, wording.decimals_for([value]))


SHOWN = {
    "layer": _Shown(words("Layer"), str),
    "block": _Shown(words("Block"), str),
    "removed": _Shown(figures("Channels gone", "%"), wording.percent),
    "loss_rise": _Shown(figures("Loss rise"), _loss),
    "loss_in_int8": _Shown(figures("Loss by its int8 form"), _loss),
    "kind": _Shown(words("Factors"), str),
    "ranks": _Shown(words("Ranks"), lambda ranks: ", ".join(map(str, ranks))),
    "macs_saved": _Shown(figures("MACs saved"), lambda count: f"{count:,}"),
    "macs_left": _Shown(figures("MACs left", "%"), wording.percent),
    "ms_saved": _Shown(figures("Saved", "ms"), _plain),
    "blocks_removed": _Shown(figures("Blocks removed"), str),
    "predicted": _Shown(figures("Latency predicted", "% of uncut"), wording.percent),
    "share": _Shown(figures("Latency measured", "% of uncut"), wording.percent),
    "p50_ms": _Shown(figures("p50", "ms"), _plain),
    "uncut_p50_ms": _Shown(figures("p50 uncut", "ms"), _plain),
    "engine": _Shown(words("Engine"), str),
    "ratio": _Shown(figures("Speedup"), wording.ratio),
    "verdict": _Shown(words("Verdict"), str),
}

SENSITIVITY_NOTES = {
    "removed": "Each group of channels cut alone, by its least important ones; nothing was trained in between.",
    "block": "Each block taken out together with those above it; nothing was trained in between.",
    "macs_saved": "Each layer alone in these factors; nothing was trained in between.",
    "loss_in_int8": "Each layer alone back in float, and every other one in int8.",
}


def decision_table(name: str, rows: Rows) -> Table | None:
    """The table of a fact of this name; None where the name, or what is in it, is not known here."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if name == "latency table" and {"layers", "points", "reads", "writes"} <= set(keys):
        return _latency_table(rows)
    shown = {key: SHOWN.get(key) or _metric(key) for key in keys}
    others = [key for key in keys if key not in SHOWN]
    # What a sensitivity has beside is the task's metric, under its own name.
    if name not in ("sensitivity", "engines timed") or len(others) > (name == "sensitivity" and len(keys) > 1):
        return None
    columns = tuple(each.column for each in shown.values())
    body = tuple(tuple(_cell(shown[key], row.get(key)) for key in keys) for row in rows)
    if name == "engines timed":
        return Table("Engines timed", columns, body, "In the order in which they were built and timed.")
    note = next((text for key, text in SENSITIVITY_NOTES.items() if key in keys), "")
    return Table("Sensitivity", columns, body, note)


def _metric(key: str) -> _Shown:
    """The column of the task's metric, such as ``accuracy`` or, of layers back in float, ``accuracy_without``."""
    name = key.removesuffix("_without")
    title = name[:1].upper() + name[1:] + (" with it in float" if name != key else "")
    if name == "accuracy":
        return _Shown(figures(title, "%, training samples"), wording.percent)
    return _Shown(figures(title, "training samples"), _plain)


def _cell(shown: _Shown, value: Any) -> Cell:
    return Cell("–") if value is None else Cell(shown.write(value))


def _latency_table(rows: Rows) -> Table:
    columns = (
        words("Layer"),
        words("Channels"),
        figures("Whole", "ms"),
        words("With fewer outputs"),
        words("With fewer inputs"),
        words("With the fewest of both"),
    )
    note = (
        "Each layer by itself as an engine: channels and p50 in milliseconds. Equal layers were timed once; between "
        "two counts a time is taken from the line through them."
    )
    return Table("Latency table", columns, tuple(_layer_row(row) for row in rows), note)


def _layer_row(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    first, *others = row["layers"]
    most = (row["reads"], row["writes"])
    whole = [point for point in row["points"] if _sides(point) == most]
    rest = [point for point in row["points"] if _sides(point) != most]
    tied = bool(row.get("depthwise"))
    outputs = [(point["writes"], point["ms"]) for point in rest if tied or point["reads"] == most[0]]
    inputs = [(point["reads"], point["ms"]) for point in rest if not tied and point["writes"] == most[1]]
    both = [point for point in rest if not tied and point["reads"] < most[0] and point["writes"] < most[1]]
    return (
        Cell(first, f"and {len(others)} like it" if others else ""),
        Cell(f"{most[0]} → {most[1]}"),
        Cell(_plain(whole[0]["ms"]) if whole else "–"),
        Cell(_counts(outputs)),
        Cell(_counts(inputs)),
        Cell(", ".join(f"{point['reads']} → {point['writes']}: {_plain(point['ms'])}" for point in both) or "–"),
    )


def _sides(point: Mapping[str, Any]) -> tuple[int, int]:
    return point["reads"], point["writes"]


def _counts(times: Sequence[tuple[int, float]]) -> str:
    return ", ".join(f"{count}: {_plain(ms)}" for count, ms in times) or "–"
