"""What a target may ask for beyond single queries, under the names of MLPerf Inference's scenarios."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Scenario(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OfflineScenario(_Scenario):
    """All samples are there at once: throughput at the best batch size."""

    max_batch: Annotated[int, Field(ge=1, le=65536)] = 64
    """The largest of the batch sizes that are tried; the others are the powers of two below it."""


class ServerScenario(_Scenario):
    """Queries of one sample arrive by a Poisson process: the highest rate whose latency meets a bound."""

    p99_ms: Annotated[float, Field(gt=0)]
    """The bound of the 99th percentile, from arrival to answer."""
    seconds: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """How long a trial of the search takes; longer where fewer than 1,000 queries would arrive."""
    replay_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 60.0
    """How long the rate that was found has to hold."""
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many of the queries that wait are answered by one run, at most."""


def batch_sizes(largest: int) -> tuple[int, ...]:
    """The powers of two below `largest`, and `largest`."""
    powers = (1 << exponent for exponent in range(largest.bit_length()))
    return (*(size for size in powers if size < largest), largest)
