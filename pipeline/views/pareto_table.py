"""Every engine's place between metric and latency: on the front, or beaten by which others."""

from collections.abc import Sequence

from ..comparison.asked import Budget
from ..comparison.compare import Compared
from ..comparison.contender import Contender
from ..comparison.pareto import Rival, Standing
from . import wording
from .compare_cells import machine_mark, marked, metric_column, named, score_cell, told_of
from .engine_tables import p50_cell
from .tables import Cell, Table, figures, words

MOST_RIVALS = 4
"""That are named; the fastest ones."""
MOST_ON_FRONT = 6
"""In the sentence."""


def pareto_table(compared: Compared) -> Table:
    """By rising latency, those on the front first; no row where no engine has a metric."""
    standings = sorted(compared.standings, key=lambda each: not each.on_front)
    decimals = wording.decimals_for(each.latency.p50_ms for each in standings)
    columns = (
        words("Engine"),
        words("What it is"),
        figures("p50", "ms"),
        metric_column(compared),
        words("Place"),
        *((words("Budgets"),) if compared.budgets else ()),
    )
    rows = tuple(
        (
            named(Cell(each.engine.mark), compared, each.engine.machine),
            Cell(f"{each.engine.label}: {each.engine.name}", each.engine.target),
            marked(p50_cell(each.latency, decimals), compared, each.engine.machine),
            marked(score_cell(compared, each.engine), compared, each.engine.machine),
            _place_cell(compared, each),
            *((_budget_cell(compared.budgets, each),) if compared.budgets else ()),
        )
        for each in standings
    )
    return Table("Pareto front", columns, rows, _note(compared))


def front_sentence(compared: Compared) -> str:
    """The front in one line; empty where no engine has a metric."""
    front = [each for each in compared.standings if each.on_front]
    if not front:
        return ""
    beaten = len(compared.standings) - len(front)
    told = told_of(compared, front[0].engine)
    on_it = wording.sentence_list(
        f"{each.engine.mark} ({wording.figure(each.latency.p50_ms)} ms, {told.told(each.score.value)}"
        f"{_machine(compared, each)})"
        for each in front[:MOST_ON_FRONT]
    )
    on_it += f" and {len(front) - MOST_ON_FRONT} more" if len(front) > MOST_ON_FRONT else ""
    others = f"; {beaten} other engine{' is' if beaten == 1 else 's are'} beaten" if beaten else ""
    return f"On the front of {told.metric.name} against p50 at batch {compared.batch}: {on_it}{others}."


def _machine(compared: Compared, standing: Standing) -> str:
    mark = machine_mark(compared, standing.engine.machine)
    return f", {mark}" if mark else ""


def _place_cell(compared: Compared, standing: Standing) -> Cell:
    if standing.on_front:
        level = f"within noise of {_marks(standing.level)}" if standing.level else ""
        return Cell("on the front", level, "good")
    sure = [rival for rival in standing.rivals if rival.beyond_noise]
    rivals = sure or list(standing.rivals)
    nearest, marks = rivals[0], _marks([rival.engine for rival in rivals])
    detail = f"{nearest.engine.mark}: {_rival_words(compared, nearest)}"
    return Cell(f"beaten by {marks}" if sure else f"within noise of {marks}", detail, "quiet")


def _marks(engines: Sequence[Contender]) -> str:
    shown = ", ".join(each.mark for each in engines[:MOST_RIVALS])
    return f"{shown} and {len(engines) - MOST_RIVALS} more" if len(engines) > MOST_RIVALS else shown


def _rival_words(compared: Compared, rival: Rival) -> str:
    speed = f"{wording.ratio(rival.speedup.ratio)} the speed"
    if rival.speedup.verdict != "faster":
        speed += " (noise)"
    told = told_of(compared, rival.engine)
    score = f"{told.metric.name} {told.change_told(rival.score.value)}"
    return f"{speed}, {score}{'' if rival.score.significant else ' (noise)'}"


def _budget_cell(budgets: Sequence[Budget], standing: Standing) -> Cell:
    own = [each for each in budgets if each.concerns(standing.engine.letter)]
    missed = [each.goal or each.label for each in own if not _within(each, standing)]
    return Cell(f"over {', '.join(missed)}", tone="quiet") if missed else Cell("within all")


def _within(budget: Budget, standing: Standing) -> bool:
    if budget.is_latency:
        return standing.latency.p50_ms <= budget.limit
    value = standing.score.value
    return value >= budget.limit if standing.score.metric.higher_is_better else value <= budget.limit


def _note(compared: Compared) -> str:
    apart = " Only engines of one machine and the same test samples are set against each other."
    left_out = [each.mark for each in compared.engines if each.score is None or each.at(compared.batch) is None]
    missing = (
        f" Not placed, for want of a metric or of batch {compared.batch}: {', '.join(left_out)}." if left_out else ""
    )
    return (
        "An engine is beaten by one that is no slower and no worse, and better in one of both; it is “within noise” of "
        f"engines that are surely better in neither.{apart}{missing}"
    )
