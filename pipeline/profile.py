"""What ``potstill profile`` found, and ``--json`` writes."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from ..export.measurement import Comparison, Latency, Machine, NotMeasured, Offline, OperatorTime, Server, Value
from .errors import UsageError


class ProfiledEngine(Value):
    """A file as one runtime runs it."""

    name: str
    """Of the file, with the runtime where several ran it."""
    file: str
    """As it was named on the command line."""
    sha256: str
    """Of that file."""
    file_bytes: int
    """Of what the runtime opened, which it may have built of that file."""
    runtime: str
    device: str
    threads: int
    provider: str
    inputs: dict[str, tuple[int | None, ...]]
    input_types: dict[str, str]
    operators: dict[str, int]
    latency: tuple[Latency, ...]
    """One a batch size; likewise below."""
    device_latency: tuple[Latency, ...]
    """By the device's own clock; empty on the CPU."""
    beside_first: tuple[Comparison, ...]
    """In turns with the first engine, which is compared with itself."""
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    layers: tuple[OperatorTime, ...] | NotMeasured | None = None
    """In the runtime's own profile, at the first batch size; None where they were not asked for."""
    offline: Offline | None = None
    server: Server | None = None


class Profile(Value):
    """What one call found; ``--json`` writes it."""

    version: Literal[1] = 1
    kind: Literal["profile"] = "profile"
    started: datetime
    machine: Machine
    inputs: str
    """What the engines were given, in words."""
    entries: Annotated[tuple[ProfiledEngine, ...], Field(min_length=1)]

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what ``--json`` wrote; UsageError where it is something else."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(f"{file}: is no profile of `potstill profile --json`: {error}") from error
