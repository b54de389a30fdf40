"""Build an engine and accept it; measure an engine: what the pipeline asks of this package."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import torch
from pydantic import Field, JsonValue, ValidationError

from ..pipeline.artifact import Artifact
from ..pipeline.data import Dataset
from ..pipeline.errors import ExportError
from ..pipeline.files import write_atomically
from ..pipeline.fingerprints import fingerprint, sha256_of
from ..pipeline.task import Task
from .audit import demand_share
from .engine import Array
from .latency import compare
from .measurement import Accuracy, Audit, EngineMeasurement, Parity, Value
from .onnx_file import OUTPUT, OnnxMetadata, exported
from .parity import demand_parity, numpy_inputs, parity_of
from .target import INT8, Target

__all__ = ["BuiltEngine", "OnnxMetadata", "build_engine", "measure_engine", "rehearse_engine"]

RECORD = "engine.json"


class BuiltEngine(Value):
    """An engine's file and why it was accepted; ``engine.json`` beside the file holds the same."""

    folder: Path = Field(exclude=True)
    label: str
    """Target and precision, such as ``onnxruntime cpu int8``."""
    precision: str
    file: str
    """The name of the engine's file in the folder."""
    sha256: str
    file_bytes: int
    parity: Parity
    audit: Audit | None

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.folder / self.file

    @property
    def fingerprint(self) -> str:
        """Of the file's bytes and of everything found out about it."""
        record: JsonValue = self.model_dump(mode="json")
        return fingerprint(record)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `build_engine` left in a folder; raises ExportError when it is not there or not whole."""
        try:
            record = (folder / RECORD).read_bytes()
            engine = cls.model_validate({**Record.model_validate_json(record).model_dump(), "folder": folder})
        except (OSError, ValidationError) as error:
            raise ExportError(f"{folder} holds no readable engine: {error}\nMend: remove it and run again.") from error
        if not engine.path.is_file():
            raise ExportError(f"{engine.path} is missing; remove {folder} and run again to build it anew")
        return engine
