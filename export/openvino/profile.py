"""How long every operator takes, by OpenVINO's own profile."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..engine import Array
from ..measurement import OperatorTime
from .engine import Engine
from .runtime_graph import RuntimeOperator

PROFILED_RUNS = 50
PROFILE_WARM_UP = 5


def operator_times(file: Path, inputs: Mapping[str, Array], *, threads: int) -> tuple[OperatorTime, ...]:
    """Every operator that runs with the median time of its calls, in the order they run; a model of its own.

    OpenVINO tells whole microseconds.
    """
    with Engine(file, threads=threads, profile=True) as engine:
        engine.bind(inputs)
        calls = [engine.profiled() for _ in range(PROFILE_WARM_UP + PROFILED_RUNS)][PROFILE_WARM_UP:]
        return medians(engine.graph().operators, calls)


def medians(operators: Sequence[RuntimeOperator], calls: Sequence[Mapping[str, float]]) -> tuple[OperatorTime, ...]:
    """Of the milliseconds that each call tells by operator; one under a microsecond is not in all of them."""
    return tuple(
        OperatorTime(
            layer=each.layer,
            operator=each.kind,
            ms=float(np.median([call.get(each.name, 0.0) for call in calls])),
        )
        for each in operators
        if any(each.name in call for call in calls)
    )
