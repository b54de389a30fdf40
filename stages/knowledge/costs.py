"""What a training step costs with each method, as `benchmarks/knowledge_cost.py` measured it."""

from functools import cache
from pathlib import Path

from pydantic import BaseModel

FILE = Path(__file__).with_name("costs.json")


class Costs(BaseModel, frozen=True, extra="forbid"):
    """The times of one measurement."""

    command: str
    pair: str
    """Teacher and student."""
    machine: str
    date: str
    relative: dict[str, float]
    """By method: the time of a step over the time of a step of plain `kd`, the median of the rounds."""


@cache
def measured_costs() -> Costs | None:
    """The committed measurement; None where there is none."""
    return Costs.model_validate_json(FILE.read_bytes()) if FILE.exists() else None
