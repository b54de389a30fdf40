"""How long every operator takes, by OpenVINO's own profile."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..engine import Array
from ..measurement import OperatorTime
from .engine import Engine

PROFILED_RUNS = 50
PROFILE_WARM_UP = 5


def operator_times(file: Path, inputs: Mapping[str, Array], *, threads: int) -> tuple[OperatorTime, ...]:
    """Every operator that runs with the median time of its calls, in the order they run; a model of its own.

    OpenVINO tells whole microseconds.
    """
    with Engine(file, threads=threads, profile=True) as engine:
        engine.bind(inputs)
        calls = [engine.profiled() for _ in range(PROFILE_WARM_UP + PROFILED_RUNS)][PROFILE_WARM_UP:]
        operators = engine.graph().by_name()
    return tuple(
        OperatorTime(
            layer=operators[name].layer,
            operator=operators[name].kind,
            ms=float(np.median([each[name] for each in calls])),
        )
        for name in calls[-1]
        if name in operators
    )
