"""A bundle's folder: written aside, proven from there by a process that knows nothing else, and then renamed."""

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ...pipeline.data import Dataset
from ...pipeline.errors import ExportError, UsageError
from ...pipeline.files import sync_folder
from ...pipeline.fingerprints import sha256_by_file
from ...pipeline.images.pictures import PictureInput
from ...pipeline.normalization import Normalization
from ...pipeline.progress import Progress
from ...pipeline.storage_errors import storage_errors
from ...pipeline.task import Task
from ...pipeline.tokenizer import FILE as TOKENIZER
from ..engine import Array, EngineDescription
from ..measurement import EngineMeasurement, Machine
from ..parity import numpy_inputs
from ..scores import score_of
from ..target import Target
from .deployments import deployment_of
from .manifest import (
    FILE,
    Attribution,
    Decoding,
    EngineRecord,
    Input,
    Manifest,
    MeasuredRecord,
    Output,
    Preparation,
    Provenance,
)
from .reading import KINDS, write_reading
from .recheck import EXAMPLE, outputs_of, values_of
from .rendering import rendered
from .triton import CONFIG, REPOSITORY, check_config, demand_servable, write_repository


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What goes into a bundle."""

    name: str
    engine: EngineMeasurement
    target: Target
    file: Path
    """The engine's, in its run."""
    data: Dataset
    task: Task
    task_name: str
    machine: Machine
    """Where the engine was measured."""
    taken: datetime
    attribution: Attribution
    provenance: Provenance


def write_bundle(contents: Contents, folder: Path, *, triton: bool, replace: bool, progress: Progress) -> Manifest:
    """Make the folder, which must not be there unless `replace` is set and it is a bundle.

    Raises UsageError where it cannot be that folder or Triton cannot serve the engine, ExportError where the engine of
    the folder alone has another score than in its run, RunFolderError where the disk is full or protected.
    """
    deployment_of(contents.engine.runtime)
    if triton:
        demand_servable(contents.engine.runtime)
    _demand_free(folder, replace=replace)
    with _aside(folder) as aside:
        for file in contents.target.files_of(contents.file):
            shutil.copyfile(file, aside / file.name)
        manifest = _described(contents)
        if contents.data.text is not None:
            (aside / TOKENIZER).write_text(contents.data.text.tokenizer.json, encoding="utf-8")
        _write_texts(aside, manifest)
        progress.say(f"measures the {contents.task.metric.name} from the folder alone")
        manifest = _proven(aside, manifest, contents)
        if triton:
            files = contents.target.files_of(contents.file)
            write_repository(aside, manifest, contents.engine, files)
            progress.say(check_config((aside / REPOSITORY / manifest.name / CONFIG).read_text(encoding="utf-8")))
        (aside / "README.md").write_text(_readme(manifest, triton=triton), encoding="utf-8")
        manifest = manifest.model_copy(update={"files": _hashes(aside)})
        _write_manifest(aside, manifest)
    return manifest


def _beside(folder: Path, ending: str) -> Path:
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.{ending}")


def _demand_free(folder: Path, *, replace: bool) -> None:
    old = _beside(folder, "old")
    if old.exists() and not folder.exists():  # a kill between the two renamings
        old.rename(folder)
    if not folder.exists():
        return
    if not replace:
        raise UsageError(f"{folder} exists; name another folder, or give --force to replace a bundle")
    Manifest.load(folder)  # nothing else is replaced


@contextmanager
def _aside(folder: Path) -> Generator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends, and is gone when it fails."""
    folder, aside, old = folder.resolve(), _beside(folder, "aside"), _beside(folder, "old")
    with storage_errors(folder.parent):
        for left_over in (aside, old):
            if left_over.exists():
                shutil.rmtree(left_over)
        try:
            aside.mkdir(parents=True)
        except FileNotFoundError as error:  # what a system's own folders say, such as /proc
            raise UsageError(f"{folder}: no folder can be made there; name another one") from error
        try:
            yield aside
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        sync_folder(folder.parent)
        if old.exists():
            shutil.rmtree(old)


def _described(contents: Contents) -> Manifest:
    """The manifest before the folder was proven and hashed."""
    engine = contents.engine
    with contents.target.open(contents.file) as opened:
        told = opened.describe()
        outputs = opened.run(numpy_inputs(contents.data.example()))
    first = engine.latency[0]
    return Manifest(
        name=contents.name,
        task=contents.task_name,
        metric=contents.task.metric,
        labels=contents.data.classes,
        engine=EngineRecord(
            target=engine.target,
            runtime=engine.runtime,
            device=engine.device,
            precision=engine.precision,
            threads=engine.threads,
            settings=engine.settings,
            file=contents.file.name,
            provider=told.provider,
            remarks=engine.remarks,
        ),
        inputs=_inputs(told, contents.data),
        outputs=_outputs(told, outputs),
        tokenizer=None if contents.data.text is None else TOKENIZER,
        measured=MeasuredRecord(
            score=engine.score,
            score_from_bundle=None,
            latency=tuple(each.candidate for each in engine.latency),
            speedup=first.ratio,
            file_bytes=engine.file_bytes,
            peak_memory_bytes=engine.peak_memory_bytes,
            machine=contents.machine,
            taken=contents.taken,
        ),
        attribution=contents.attribution,
        provenance=contents.provenance,
        files={},
    )


def _inputs(told: EngineDescription, data: Dataset) -> dict[str, Input]:
    raw, normalizations = data.test.raw, data.test.normalizations
    front_end = None if data.front_end is None else data.front_end.in_words()
    return {
        name: Input(
            shape=told.inputs[name],
            dtype=told.input_types[name],
            sample_dtype=str(tensor.numpy().dtype),
            normalization=_preparation(normalizations.get(name)),
            decoding=_decoding(data.test.pictures),
            rate=data.rates.get(name),
            front_end=front_end,
        )
        for name, tensor in raw.items()
    }


def _decoding(pictures: PictureInput | None) -> Decoding | None:
    if pictures is None:
        return None
    from ...pipeline.images.decoding import BACKGROUND

    done = pictures.preparation
    return Decoding(resize=done.resize, size=done.size, background=BACKGROUND)


def _preparation(normalization: Normalization | None) -> Preparation | None:
    if normalization is None or ({*normalization.scale}, {*normalization.shift}) == ({1.0}, {0.0}):
        return None
    scale, shift = normalization.scale, normalization.shift
    return Preparation(
        scale=scale,
        shift=shift,
        mean=tuple(0.0 - moved / factor for moved, factor in zip(shift, scale, strict=True)),
        deviation=tuple(1 / factor for factor in scale),
    )


def _outputs(told: EngineDescription, outputs: Mapping[str, Array]) -> dict[str, Output]:
    return {name: Output(shape=shape, dtype=str(outputs[name].dtype)) for name, shape in told.outputs.items()}


def _write_texts(folder: Path, manifest: Manifest) -> None:
    """What the example needs to run."""
    _write_manifest(folder, manifest)
    reads = manifest.reads
    example = rendered(
        f"{manifest.engine.runtime}.py.jinja", device=manifest.engine.device, reads=reads, given=KINDS[reads].given
    )
    (folder / EXAMPLE).write_text(example, encoding="utf-8")
    libraries = manifest.measured.machine.libraries
    wanted = ("numpy", *deployment_of(manifest.engine.runtime).packages)
    packages = {name: libraries[name] for name in wanted if name in libraries} | write_reading(folder, reads)
    # What stands behind a plus sign is a build of the same version, which package indexes do not have.
    pinned = [f"{name}=={version.partition('+')[0]}\n" for name, version in packages.items()]
    (folder / "requirements.txt").write_text("".join(pinned), encoding="utf-8")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / FILE).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _proven(folder: Path, manifest: Manifest, contents: Contents) -> Manifest:
    """With the score that the folder alone has; ExportError where it is not the run's."""
    data, task = contents.data, contents.task
    outputs = outputs_of(folder, data, data.batch_size)
    score = score_of(values_of(outputs, data.test, task, data.batch_size), task.metric)
    wanted = contents.engine.score
    if score != wanted:
        raise ExportError(
            f"{contents.engine.target}: from the bundle's folder alone the {task.metric.name} is {score.value!r}, and "
            f"in its run it was {wanted.value!r}; is this the machine, and are these the packages, that it was "
            "measured with? `potstill run` with the run's recipe measures anew"
        )
    measured = manifest.measured.model_copy(update={"score_from_bundle": score})
    return manifest.model_copy(update={"measured": measured})


def _hashes(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in sha256_by_file(folder).items() if name != FILE}


def _readme(manifest: Manifest, *, triton: bool) -> str:
    return rendered("README.md.jinja", manifest=manifest, triton=REPOSITORY if triton else "")
