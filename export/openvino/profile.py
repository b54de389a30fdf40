"""How long every operator takes, by OpenVINO's own profile."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..engine import Array
from ..measurement import OperatorTime
from .engine import Engine
from .runtime_graph import RuntimeOperator

BLOCKS = 5
WARM_UP_RUNS, RUNS = 2, 10


def operator_times(file: Path, inputs: Mapping[str, Array], *, threads: int) -> tuple[OperatorTime, ...]:
    """Every operator that runs with the median time of its calls, to about a microsecond, in the order they run.

    OpenVINO tells averages of all runs since it compiled the model, of which the first can take a thousand times as
    long, and in whole microseconds: the more runs, the less their differences tell, so each block is compiled anew.
    """
    operators: tuple[RuntimeOperator, ...] = ()
    calls: list[list[float]] = []
    for _ in range(BLOCKS):
        with Engine(file, threads=threads, profile=True) as engine:
            engine.bind(inputs)
            sums = [engine.summed(WARM_UP_RUNS), *(engine.summed(1) for _ in range(RUNS))]
            # Their order is the same each time; what OpenVINO put in bears other numbers in its name.
            operators = engine.graph().operators
        calls += each_call(operators, sums)
    medians = np.median(calls, axis=0)
    return tuple(
        OperatorTime(layer=each.layer, operator=each.kind, ms=max(0.0, float(ms)))
        for each, ms in zip(operators, medians, strict=True)
    )


def each_call(operators: Sequence[RuntimeOperator], sums: Sequence[Mapping[str, float]]) -> Iterator[list[float]]:
    """What every operator took from each sum to the next; 0 for one that takes less than can be told."""
    for before, after in pairwise(sums):
        yield [after.get(each.name, 0.0) - before.get(each.name, 0.0) for each in operators]
