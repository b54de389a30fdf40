"""Build an engine and accept it; measure an engine: what the pipeline asks of this package."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import torch
from pydantic import Field, JsonValue

from ..pipeline.artifact import Artifact
from ..pipeline.blueprint import layer_sizes
from ..pipeline.data import Dataset
from ..pipeline.errors import ExportError
from ..pipeline.files import write_atomically
from ..pipeline.fingerprints import fingerprint, sha256_of
from ..pipeline.front_end import FRONT_END
from ..pipeline.task import Task
from .audit import demand_share, without_float_layers
from .diagnosis import diagnosis
from .engine import Array
from .latency import compare, rank
from .measurement import (
    Audit,
    Comparison,
    EngineMeasurement,
    NotMeasured,
    Offline,
    OperatorTime,
    Parity,
    Ranked,
    Server,
    Value,
)
from .offline import measure_offline
from .onnx_file import OUTPUT, OnnxMetadata
from .parity import demand_parity, numpy_inputs, parity_of
from .scores import Values, paired_change, score_of
from .server import measure_server
from .target import EngineFile, Source, Target, scheme_of

__all__ = [
    "BuiltEngine",
    "Measured",
    "OnnxMetadata",
    "Ranking",
    "Scenarios",
    "build_engine",
    "compare_engines",
    "diagnose",
    "measure_engine",
    "measure_scenarios",
    "paired_change",
    "rank_engines",
    "rehearse_engine",
]

RECORD = "engine.json"
MEASUREMENT, VALUES = "measurement.json", "values.npy"

PROFILES = 3
"""How often both engines are profiled for a diagnosis; the fastest time of each operator counts."""


class BuiltEngine(Value):
    """An engine's file and why it was accepted; ``engine.json`` beside the file holds the same."""

    folder: Path = Field(exclude=True)
    label: str
    """Target and precision, such as ``onnxruntime cpu int8``."""
    precision: str
    file: str
    """The name of the engine's file in the folder."""
    sha256: str
    beside: dict[str, str] = Field(default_factory=dict[str, str])
    """The sha256 of the files beside it that it cannot be opened without, by their names."""
    file_bytes: int
    """Of all of them."""
    parity: Parity
    audit: Audit | None
    remarks: tuple[str, ...] = ()
    """What the engine's precision alone would not tell."""

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
            record: dict[str, JsonValue] = json.loads((folder / RECORD).read_bytes())
            engine = cls.model_validate({**record, "folder": folder})
        except (OSError, ValueError) as error:
            raise ExportError(f"{folder} holds no readable engine: {error}\nMend: remove it and run again.") from error
        if not engine.path.is_file():
            raise ExportError(f"{engine.path} is missing; remove {folder} and run again to build it anew")
        return engine


def build_engine(
    artifact: Artifact, target: Target, precision: str, folder: Path, data: Dataset, *, metadata: OnnxMetadata
) -> BuiltEngine:
    """Export the artifact, build its engine in `folder`, and accept it or not.

    Raises ExportError when it cannot be built, ParityError when it computes something else than the model, AuditError
    when less than the target's `min_int8_share` of a quantized engine runs so.
    """
    label = f"{target.label} {precision}"
    made = target.make(Source(artifact=artifact, data=data, metadata=metadata), precision, folder)
    file = made.file
    with target.open(file) as engine:
        rule = made.compared_as or precision
        parity = parity_of(engine, artifact, data, rule, made.reference, in_half=made.in_half)
    demand_parity(parity, f"{metadata.stage}, {label}")
    audit = target.audit(file, precision)
    if audit is not None:
        if artifact.quantization is not None and scheme_of(precision) is not None:
            audit = without_float_layers(audit, artifact.quantization.float_layers)
            if artifact.blueprint.front_end is not None:
                audit = without_float_layers(audit, (FRONT_END,), "it is of the front end, which stays in float32")
        demand_share(audit, f"{metadata.stage}, {label}")
    hashes = {each.name: sha256_of(each) for each in target.files_of(file)}
    built = BuiltEngine(
        folder=folder,
        label=label,
        precision=precision,
        file=file.name,
        sha256=hashes.pop(file.name),
        beside=hashes,
        file_bytes=EngineFile(target, file).num_bytes,
        parity=parity,
        audit=audit,
        remarks=(*target.remarks(file, precision), *made.remarks),
    )
    write_atomically(folder / RECORD, built.model_dump_json(indent=1).encode())
    return built


def rehearse_engine(artifact: Artifact, target: Target, precision: str, data: Dataset) -> None:
    """Build the engine of an untrained artifact and drop it: ExportError when a trained one could not be built."""
    metadata = OnnxMetadata(recipe_hash="", stage="check", classes=data.classes)
    with TemporaryDirectory() as folder:
        target.make(Source(artifact=artifact, data=data, metadata=metadata), precision, Path(folder))


@dataclass(frozen=True)
class Measured:
    """What was measured of an engine, and what each test sample added to its score."""

    engine: EngineMeasurement
    values: Values

    def save(self, folder: Path) -> None:
        """Write ``measurement.json`` and ``values.npy``."""
        (folder / MEASUREMENT).write_text(self.engine.model_dump_json(indent=1))
        np.save(folder / VALUES, self.values, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` left in a folder."""
        engine = EngineMeasurement.model_validate_json((folder / MEASUREMENT).read_bytes())
        return cls(engine, np.load(folder / VALUES, allow_pickle=False))


def measure_engine(
    built: BuiltEngine, baseline: BuiltEngine, target: Target, data: Dataset, task: Task, *, file: str
) -> Measured:
    """The engine's score over the whole test split, and its latency beside the baseline's at every batch size.

    On a GPU also by its own clock, with its memory and states; energy where there is a counter. `file` is what the
    report calls the engine's file.
    """
    inputs = {batch: _inputs(data, batch) for batch in target.batch}
    timing = compare(EngineFile(target, built.path), EngineFile(target, baseline.path), inputs, energy=True)
    on_device = timing.on_device
    values = _values(built, target, data, task)
    engine = EngineMeasurement(
        target=built.label,
        runtime=target.runtime,
        device=target.device,
        precision=built.precision,
        threads=target.threads,
        settings=target.model_dump(mode="json"),
        file=file,
        file_bytes=built.file_bytes,
        score=score_of(values, task.metric),
        latency=timing.comparisons,
        peak_memory_bytes=timing.peak_memory_bytes,
        parity=built.parity,
        audit=built.audit,
        remarks=(*built.remarks, *_timed_on(data)),
        device_latency=on_device.latency if on_device else (),
        device_memory_bytes=on_device.memory_bytes if on_device else None,
        device_states=on_device.states if on_device else None,
        energy=timing.energy,
        operators=_operators(built, target, inputs[target.batch[0]]),
    )
    return Measured(engine, values)


def _timed_on(data: Dataset) -> tuple[str, ...]:
    """What latency hangs on where samples are of unequal length."""
    if data.test.lengths is None:
        return ()
    lengths = np.sort(data.test.lengths.numpy())
    median, long = (int(lengths[int(share * (len(lengths) - 1))]) for share in (0.5, 0.95))
    return (f"timed on samples of length {median}, the median of the test split; 5 % are longer than {long}",)


class _Kept(Value):
    """A measurement that a run folder keeps."""

    def save(self, folder: Path) -> None:
        """Write ``measurement.json``."""
        (folder / MEASUREMENT).write_text(self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` left in a folder."""
        return cls.model_validate_json((folder / MEASUREMENT).read_bytes())


class Scenarios(_Kept):
    """What a target's scenarios found; None for one that it does not ask for."""

    offline: Offline | None
    server: Server | None


class Ranking(_Kept):
    """Final engines timed in turns."""

    engines: tuple[Ranked, ...]


def measure_scenarios(built: BuiltEngine, target: Target, data: Dataset) -> Scenarios:
    """The scenarios that the target asks for, on the first test samples."""
    file = EngineFile(target, built.path)

    def inputs_of(batch: int) -> dict[str, Array]:
        return _inputs(data, batch)

    return Scenarios(
        offline=None if target.offline is None else measure_offline(file, inputs_of, target.offline.max_batch),
        server=None if target.server is None else measure_server(file, inputs_of, target.server),
    )


def _shared_batch(targets: Sequence[Target]) -> int | None:
    """The first batch size of the first target that all the others are measured at, too; None where there is none."""
    return next((batch for batch in targets[0].batch if all(batch in target.batch for target in targets)), None)


def rank_engines(engines: Sequence[tuple[BuiltEngine, Target]], data: Dataset) -> tuple[Ranked, ...]:
    """All engines timed in turns at the first batch size that their targets share: the fastest first.

    Empty where there are fewer than two, or where they share no batch size.
    """
    if len(engines) < 2:
        return ()
    batch = _shared_batch([target for _, target in engines])
    if batch is None:
        return ()
    files: Mapping[str, EngineFile] = {built.label: EngineFile(target, built.path) for built, target in engines}
    return rank(files, _inputs(data, batch))


def _operators(
    built: BuiltEngine, target: Target, inputs: Mapping[str, Array]
) -> tuple[OperatorTime, ...] | NotMeasured:
    """By one profile: as shares of the engine's time, layers of two profiles of one file differ by little."""
    try:
        return target.operator_times(built.path, inputs)
    except ExportError as error:
        return NotMeasured(reason=str(error))


def compare_engines(built: BuiltEngine, before: BuiltEngine, target: Target, data: Dataset) -> Comparison:
    """An engine timed in turns with the one of the step before, at the target's first batch size."""
    batch = target.batch[0]
    new, old = (EngineFile(target, engine.path) for engine in (built, before))
    return compare(new, old, {batch: _inputs(data, batch)}).comparisons[0]


def diagnose(
    built: BuiltEngine, before: BuiltEngine, target: Target, data: Dataset, artifact: Artifact
) -> tuple[str, ...]:
    """Why the engine of `artifact` is not faster than the one before, by both engines' profiles."""
    inputs = _inputs(data, target.batch[0])
    widths = {path: size.out_channels for path, size in layer_sizes(artifact.model).items()}
    # In turns, so that what slows the machine for a while is not taken for the layers' doing.
    try:
        profiles = [
            tuple(target.operator_times(engine.path, inputs) for engine in (before, built)) for _ in range(PROFILES)
        ]
    except ExportError as error:
        return (f"no times of single operators: {error}",)
    was, is_now = (_fastest(each) for each in zip(*profiles, strict=True))
    return diagnosis(was, is_now, widths, built.audit)


def _fastest(profiles: Sequence[tuple[OperatorTime, ...]]) -> list[OperatorTime]:
    return [min(each, key=lambda time: time.ms) for each in zip(*profiles, strict=True)]


def _inputs(data: Dataset, batch: int) -> dict[str, Array]:
    """What is timed, as engines take it."""
    return numpy_inputs(data.timed(batch))


def _values(built: BuiltEngine, target: Target, data: Dataset, task: Task) -> Values:
    found: list[Values] = []
    with target.open(built.path) as engine:
        for batch in data.test.batches(data.batch_size):
            outputs = engine.run(numpy_inputs(batch.inputs))[OUTPUT]
            found.append(task.values(torch.as_tensor(outputs), batch.target).double().numpy())
    return np.concatenate(found)
