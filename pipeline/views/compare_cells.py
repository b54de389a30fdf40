"""Cells that all tables of a comparison share: every measured number names its machine where there are several."""

from ...export.measurement import Machine
from ..comparison.compare import Compared
from ..comparison.contender import NO_SCORE, Contender
from .metric_words import MetricWords
from .tables import Cell, Column, figures, not_measured


def machine_mark(compared: Compared, *machines: Machine) -> str:
    """Such as ``machine 2``, or ``machines 1 and 2``; empty where all numbers are of one machine."""
    if compared.same_machine:
        return ""
    numbers = sorted({compared.machine_number(machine) for machine in machines})
    return f"machine{'s' if len(numbers) > 1 else ''} {' and '.join(map(str, numbers))}"


def marked(cell: Cell, compared: Compared, *machines: Machine) -> Cell:
    """The cell with the machine that its number is of; as it is where it holds none, such as “not measured”."""
    return named(cell, compared, *machines) if any(each.isdigit() for each in cell.text) else cell


def named(cell: Cell, compared: Compared, *machines: Machine) -> Cell:
    """The head of a row, or words about a number, with the machine."""
    mark = machine_mark(compared, *machines)
    # On a line of its own, where lines are kept: a table with a mark in each cell would be too wide.
    return Cell(cell.text, ";\n".join(filter(None, (cell.detail, mark))), cell.tone) if mark else cell


def told_of(compared: Compared, engine: Contender) -> MetricWords:
    """How an engine's metric is told, alike for all engines that have it."""
    assert engine.score is not None  # those of profiles are not asked
    alike = [each.score for each in compared.engines if each.score and each.score.metric == engine.score.metric]
    return MetricWords.of(alike)


def metric_column(compared: Compared) -> Column:
    """Headed by the metric where there is one."""
    if compared.runs and compared.same_metric:
        return told_of(compared, compared.runs[0].main[0]).column()
    return figures("Metric")


def score_cell(compared: Compared, engine: Contender) -> Cell:
    """With the metric's name where the runs have different ones."""
    if engine.score is None:
        return not_measured(NO_SCORE)
    told = told_of(compared, engine)
    cell = told.cell(engine.score)
    return cell if compared.same_metric else Cell(f"{told.metric.name} {told.told(engine.score.value)}", cell.detail)
