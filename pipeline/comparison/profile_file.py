"""What ``potstill profile --json`` wrote, as far as a comparison reads it."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ...export.measurement import Comparison, Latency, Machine, NotMeasured, OperatorTime
from ..errors import UsageError

VERSION = 1
KIND = "profile"


class _Read(BaseModel):
    """Frozen; keys that a comparison has no use for are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ProfileEntry(_Read):
    """One profiled file."""

    name: str
    file: str
    sha256: str
    runtime: str
    device: str
    precision: str | None = None
    """None where the file does not tell."""
    threads: int
    latency: Annotated[tuple[Latency, ...], Field(min_length=1)]
    """One a batch size."""
    peak_memory_bytes: int | None = None
    layers: tuple[OperatorTime, ...] | NotMeasured | None = None
    """None where they were not asked for."""
    file_bytes: int | None = None
    beside_first: tuple[Comparison, ...] = ()
    """In turns with the first entry, one a batch size."""

    @property
    def target(self) -> str:
        """As reports name engines, such as ``onnxruntime cpu int8``."""
        return " ".join(part for part in (self.runtime, self.device, self.precision) if part)


class ProfileFile(_Read):
    """Files that were profiled in one call, on one machine."""

    version: Literal[1]
    kind: Literal["profile"]
    machine: Machine
    started: datetime
    entries: Annotated[tuple[ProfileEntry, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """None where the path is no profile, but perhaps a run; UsageError for a profile that cannot be understood."""
        content = _content(path)
        if not isinstance(content, dict) or content.get("kind") != KIND:
            return None
        version = content.get("version")
        if isinstance(version, int) and version > VERSION:
            raise UsageError(
                f"{path}: is a profile of version {version}, which a newer potstill wrote; this one reads up to "
                f"version {VERSION}. Mend: update potstill, or profile the files again with this one."
            )
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"{path}: is no profile that can be read: {place}: {first['msg']}; "
                "`potstill profile --json` writes it anew"
            ) from error


def _content(path: Path) -> JsonValue:
    """None for what is not JSON: the reader of reports says what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
