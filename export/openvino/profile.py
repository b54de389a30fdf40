"""How long every operator takes, by OpenVINO's own profile."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..engine import Array
from ..measurement import OperatorTime
from .engine import Engine
from .runtime_graph import RuntimeOperator

BLOCKS = 5
WARM_UP_RUNS, RUNS = 2, 10


def operator_times(file: Path, inputs: Mapping[str, Array], *, threads: int) -> tuple[OperatorTime, ...]:
    """Every operator that runs with its time, in the order they run: to a microsecond, the median over some blocks.

    OpenVINO tells averages of all runs since it compiled the model, of which the first can take a thousand times as
    long, and in whole microseconds: so each block is compiled anew, and the more runs it had, the less its sums tell.
    """
    blocks = [_block(file, inputs, threads) for _ in range(BLOCKS)]
    # Compiled alike, operators are in one order; what OpenVINO put in bears other numbers in its name each time.
    return tuple(
        OperatorTime(layer=same[0].layer, operator=same[0].operator, ms=float(np.median([each.ms for each in same])))
        for same in zip(*blocks, strict=True)
    )


def _block(file: Path, inputs: Mapping[str, Array], threads: int) -> list[OperatorTime]:
    """The mean time of each operator over some runs of a model compiled for them."""
    with Engine(file, threads=threads, profile=True) as engine:
        engine.bind(inputs)
        before, after = engine.summed(WARM_UP_RUNS), engine.summed(RUNS)
        return between(engine.graph().operators, before, after, RUNS)


def between(
    operators: Sequence[RuntimeOperator], before: Mapping[str, float], after: Mapping[str, float], runs: int
) -> list[OperatorTime]:
    """The mean time of every operator in the runs between two sums; 0 for one that takes less than can be told."""
    return [
        OperatorTime(
            layer=each.layer,
            operator=each.kind,
            ms=max(0.0, after.get(each.name, 0.0) - before.get(each.name, 0.0)) / runs,
        )
        for each in operators
    ]
