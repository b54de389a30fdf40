"""The times of parts that were measured on this machine before, kept in a folder that many runs share."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ..pipeline.files import write_atomically
from ..pipeline.fingerprints import code_fingerprint, fingerprint
from ..pipeline.side_by_side import Part
from .machine import machine_facts
from .target import Target

TIMING_CODE = (
    *("export.dialects", "export.engine_worker", "export.latency", "export.onnx_file", "export.onnx_sessions"),
    *("export.openvino", "export.part_times", "export.runtimes"),
)
"""The modules whose change can change what a part's engine is, or how it is timed."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartTime(_Frozen):
    """One part's engine."""

    part: str
    shape: tuple[int, ...]
    """Of its input, for one sample."""
    ms: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Stored(_Frozen):
    """One file: what was measured at once. Files are only ever added, so runs that share a folder never collide."""

    measured_as: dict[str, JsonValue]
    parts: dict[str, PartTime]


@dataclass(frozen=True)
class LatencyTable:
    """The stored times of one machine, target and precision; a folder of None stores nothing."""

    folder: Path | None
    measured_as: Mapping[str, JsonValue]
    """What a time depends on besides the part."""
    say: Callable[[str], None]

    @classmethod
    def of(cls, root: Path | None, target: Target, precision: str, say: Callable[[str], None]) -> "LatencyTable":
        """The table of this machine's for a target at its first batch size; its folder lies in `root`."""
        settings = target.measure_settings() | {"batch": target.batch[0]}
        measured_as: dict[str, JsonValue] = {
            "target": settings,
            "precision": precision,
            "machine": machine_facts().identity(),
            "code": code_fingerprint(*TIMING_CODE),
        }
        return cls(None if root is None else root / fingerprint(measured_as)[:32], measured_as, say)

    def known(self) -> dict[str, float]:
        """All stored times in milliseconds by the parts' keys; says which files are damaged and leaves them out."""
        times: dict[str, float] = {}
        for file in [] if self.folder is None else sorted(self.folder.glob("*.json")):
            try:
                stored = _Stored.model_validate_json(file.read_bytes())
                reason = None if stored.measured_as == self.measured_as else "it was measured otherwise"
            except (OSError, ValidationError) as error:
                stored, reason = None, str(error).splitlines()[0]
            if stored is None or reason is not None:
                self.say(f"{file}: is no part of this latency table ({reason}); its layers are timed anew")
                continue
            times |= {key: each.ms for key, each in stored.parts.items()}
        return times

    def add(self, times_ms: Mapping[Part, float]) -> None:
        """Store what was measured."""
        if self.folder is None or not times_ms:
            return
        parts = {part.key: PartTime(part=part.description, shape=part.shape, ms=ms) for part, ms in times_ms.items()}
        stored = _Stored(measured_as=dict(self.measured_as), parts=parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{fingerprint(*sorted(parts))[:16]}-{os.getpid()}.json"
        write_atomically(file, stored.model_dump_json(indent=1).encode())
