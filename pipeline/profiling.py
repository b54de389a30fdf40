"""``potstill profile``: engine files and ONNX files, ours or not, timed in turns."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..export.engine import Array, EngineDescription
from ..export.engine_process import EngineProcess
from ..export.fitting import Taken, demand_fitting
from ..export.latency import Contestant, InTurns, in_turns
from ..export.machine import machine_facts
from ..export.measurement import NotMeasured, Offline, OperatorTime, Server
from ..export.offline import measure_offline
from ..export.random_inputs import SEED, random_inputs, shapes_of
from ..export.resampling import compared
from ..export.server import measure_server
from ..export.target import EngineFile
from .errors import ExportError, UsageError
from .fingerprints import sha256_of
from .profile import Profile, ProfiledEngine
from .profile_files import Request, engine_files

Inputs = Mapping[str, Array]


@dataclass(frozen=True)
class Opened:
    """A file with the runtime that runs it, and all it is given, by batch size."""

    given: Path
    engine: EngineFile
    description: EngineDescription
    inputs: Mapping[int, Inputs]


def profile(request: Request, say: Callable[[str], None]) -> Profile:
    """Time every file in every runtime that was asked for; `say` is told what is being done.

    Raises UsageError for what does not fit the files, ExportError for files that cannot be run or compute nothing.
    """
    began = datetime.now(UTC)
    with TemporaryDirectory(prefix="potstill-profile-") as scratch:
        opened = examined(request, Path(scratch))
        _demand_same_batches(opened)
        say(f"times {_engines(len(opened))} in turns")
        turns = in_turns([Contestant(each.engine, each.inputs) for each in opened])
        names = _names(opened)
        entries = tuple(_entry(request, names[index], each, turns, index, say) for index, each in enumerate(opened))
    inputs = f"random, seed {SEED}" if request.inputs is None else str(request.inputs)
    return Profile(started=began, machine=machine_facts(), inputs=inputs, entries=entries)


def examined(request: Request, scratch: Path) -> list[Opened]:
    """Every file opened once, and found to compute something; what has to be built goes to `scratch`."""
    if not request.files:
        raise UsageError("name the files to profile")
    arrays = None if request.inputs is None else _arrays(request.inputs)
    opened = [_examined(request, given, file, arrays) for given, file in engine_files(request, scratch)]
    _demand_known_names(request, opened)
    return opened


def _examined(request: Request, given: Path, engine: EngineFile, arrays: Inputs | None) -> Opened:
    """Open the file once in a process of its own, and look at what it takes and gives."""
    with EngineProcess(engine.target, engine.path) as process:
        description = process.describe()
        if arrays is not None:
            _demand_fitting_arrays(given, description, arrays)
            inputs: Mapping[int, Inputs] = {_batch_of(arrays): arrays}
        else:
            inputs = dict(_drawn(request, given, description, batch) for batch in request.batches or [None])
        for values in inputs.values():
            _demand_results(process, given, values, "given" if arrays is not None else "random")
    return Opened(given, engine, description, inputs)


def _drawn(
    request: Request, given: Path, description: EngineDescription, batch: int | None
) -> tuple[int, dict[str, Array]]:
    ours = {name: shape for name, shape in request.shapes.items() if name in description.inputs}
    inputs = random_inputs(description, shapes_of(str(given), description, batch=batch, given=ours))
    return _batch_of(inputs) if batch is None else batch, inputs


def _demand_fitting_arrays(file: Path, description: EngineDescription, arrays: Inputs) -> None:
    wanted = {name: Taken(description.input_types[name], shape) for name, shape in description.inputs.items()}
    try:
        demand_fitting(file, wanted, arrays)
    except ExportError as error:
        raise UsageError(f"--inputs: {error}") from error


def _batch_of(inputs: Inputs) -> int:
    """The first size of the first input that has one."""
    return next((len(array) for array in inputs.values() if array.ndim), 1)


def _demand_results(process: EngineProcess, file: Path, inputs: Inputs, what: str) -> None:
    for name, facts in process.examine(inputs).items():
        if 0 in facts.shape:
            raise ExportError(
                f"{file}: output {name} has the shape {facts.shape}: there is nothing in it. Mend: give inputs of "
                "other sizes with --shape or --inputs FILE.npz, or repair the model"
            )
        if not facts.finite:
            raise ExportError(
                f"{file}: output {name} holds NaN or infinity for {what} inputs: its times would not be those of "
                "useful work. Mend: give inputs like those it was made for with --inputs FILE.npz, or repair the model"
            )


def _demand_known_names(request: Request, opened: Sequence[Opened]) -> None:
    known = {name for each in opened for name in each.description.inputs}
    unknown = [name for name in request.shapes if name not in known]
    if unknown:
        raise UsageError(f"--shape {unknown[0]}: no file has such an input; there are {', '.join(sorted(known))}")


def _demand_same_batches(opened: Sequence[Opened]) -> None:
    first = opened[0]
    for each in opened[1:]:
        if set(each.inputs) != set(first.inputs):
            raise UsageError(
                f"{first.given} takes batches of {_listed(first.inputs)} and {each.given} of {_listed(each.inputs)}: "
                "they cannot be timed beside each other. Give both the same --batch, or profile them one by one"
            )


def _listed(sizes: Mapping[int, Inputs]) -> str:
    return ", ".join(map(str, sizes))


def _arrays(file: Path) -> dict[str, Array]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"--inputs {file}: is no .npz file with an array for each input: {error}") from error
    return arrays


def _names(opened: Sequence[Opened]) -> list[str]:
    """The files' names, with what tells them apart where they are not enough."""
    names = [each.given.name for each in opened]
    if len({each.given for each in opened}) > len(set(names)):
        names = [str(each.given) for each in opened]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({each.engine.target.label})" for name, each in zip(names, opened, strict=True)]


def _entry(
    request: Request, name: str, opened: Opened, turns: InTurns, index: int, say: Callable[[str], None]
) -> ProfiledEngine:
    target = opened.engine.target
    beside = tuple(compared(batch, blocks[0], blocks[index]) for batch, blocks in turns.blocks.items())
    layers = _layers(name, opened, say) if request.layers else None
    offline, server = _scenarios(request, name, opened, say)
    return ProfiledEngine(
        name=name,
        file=str(opened.given),
        sha256=sha256_of(opened.given),
        file_bytes=opened.engine.num_bytes,
        runtime=target.runtime,
        device=target.device,
        threads=target.threads,
        provider=opened.description.provider,
        inputs=opened.description.inputs,
        input_types=opened.description.input_types,
        operators=opened.description.operators,
        latency=tuple(each.candidate for each in beside),
        device_latency=turns.device_latency(index),
        beside_first=beside,
        peak_memory_bytes=turns.peak_memory_bytes[index],
        device_memory_bytes=turns.device_memory_bytes[index],
        layers=layers,
        offline=offline,
        server=server,
    )


def _layers(name: str, opened: Opened, say: Callable[[str], None]) -> tuple[OperatorTime, ...] | NotMeasured:
    say(f"profiles the layers of {name}")
    try:
        return opened.engine.target.operator_times(opened.engine.path, next(iter(opened.inputs.values())))
    except ExportError as error:
        say(f"no layers of {name}: {error}")  # what was timed before is not worth less
        return NotMeasured(reason=str(error))


def _scenarios(
    request: Request, name: str, opened: Opened, say: Callable[[str], None]
) -> tuple[Offline | None, Server | None]:
    def inputs_of(batch: int) -> Inputs:
        if request.inputs is None:
            return _drawn(request, opened.given, opened.description, batch)[1]
        given = next(iter(opened.inputs.values()))
        return {name: _of_batch(array, opened.description.inputs[name], batch) for name, array in given.items()}

    offline, server = None, None
    if request.offline is not None:
        say(f"offline scenario of {name}")
        offline = measure_offline(opened.engine, inputs_of, request.offline.max_batch)
    if request.server is not None:
        say(f"server scenario of {name}: a search, then {request.server.replay_seconds:.0f} seconds")
        server = measure_server(opened.engine, inputs_of, request.server)
    return offline, server


def _of_batch(array: Array, declared: tuple[int | None, ...], batch: int) -> Array:
    """The first samples, from the start again where there are fewer; as it is where the batch is not free."""
    return array[np.arange(batch) % len(array)] if declared[:1] == (None,) else array


def _engines(count: int) -> str:
    return f"{count} engine{'' if count == 1 else 's'}"
