"""The builder's own measurements of kernels, kept so that the next build chooses the same ones, and sooner."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ...pipeline.files import write_atomically
from ...pipeline.fingerprints import sha256_of
from ..measurement import Value
from .manifest import Device


class CacheRecord(Value):
    """Beside a cache's file: what it was measured on, and that it is whole."""

    sha256: str
    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str


@dataclass(frozen=True)
class TimingCache:
    """A cache's content as the builder takes it, and why it is empty where a file was there."""

    content: bytes
    refused: str | None = None

    @classmethod
    def load(cls, file: Path, here: Device) -> "TimingCache":
        """What `save` left; empty where there is nothing, or nothing that fits."""
        if not file.is_file():
            return cls(b"")
        problem = _problem(file, here)
        if problem is not None:
            return cls(b"", f"the timing cache {file} was not used and is written anew: {problem}")
        return cls(file.read_bytes())

    @staticmethod
    def save(file: Path, content: bytes, here: Device) -> None:
        """The record first: a kill in between leaves one that does not fit, and the cache is written anew."""
        file.parent.mkdir(parents=True, exist_ok=True)
        record = CacheRecord(
            sha256=hashlib.sha256(content).hexdigest(),
            gpu=here.gpu,
            compute_capability=here.compute_capability,
            tensorrt=here.tensorrt,
        )
        write_atomically(_record_file(file), record.model_dump_json(indent=1).encode())
        write_atomically(file, content)


def _record_file(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _problem(file: Path, here: Device) -> str | None:
    try:
        record = CacheRecord.model_validate_json(_record_file(file).read_bytes())
    except FileNotFoundError:
        return "nothing says what it was measured on"
    except ValidationError:
        return f"{_record_file(file).name} is damaged"
    if record.sha256 != sha256_of(file):
        return "it is damaged"
    measured = record.gpu, record.compute_capability, record.tensorrt
    if measured != (here.gpu, here.compute_capability, here.tensorrt):
        return f"it is of {record.gpu} with TensorRT {record.tensorrt}, this is {here.gpu} with {here.tensorrt}"
    return None
