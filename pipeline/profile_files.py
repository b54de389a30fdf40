"""Which runtime runs which of the files that are to be profiled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from ..export.foreign_onnx import demand_sound
from ..export.random_inputs import Shape
from ..export.scenarios import OfflineScenario, ServerScenario
from ..export.target import EngineFile, OnnxTarget, Target, targets
from .errors import UsageError

ONNX = ".onnx"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be profiled, and how."""

    files: Sequence[Path]
    runtimes: Sequence[str] = ()
    """That run every file; where none is named, the one that each file's ending stands for."""
    device: str | None = None
    """None leaves it to the runtime's default."""
    threads: int = 1
    batches: Sequence[int] = ()
    """Empty where the shapes alone decide."""
    shapes: Mapping[str, Shape] = field(default_factory=dict[str, Shape])
    inputs: Path | None = None
    """An ``.npz`` with an array for each input; None for random ones."""
    layers: bool = False
    offline: OfflineScenario | None = None
    server: ServerScenario | None = None


def engine_files(request: Request, scratch: Path) -> list[tuple[Path, EngineFile]]:
    """Each file with an engine of it for every runtime that was asked for; what has to be built goes to `scratch`.

    Raises UsageError where a runtime does not open a file, MissingDependency where it is not installed, ExportError for
    a file that is unsound.
    """
    found: list[tuple[Path, EngineFile]] = []
    for file in request.files:
        if not file.exists():
            raise UsageError(f"{file}: no such file")
        if file.is_dir():
            raise UsageError(f"{file}: is a folder; name the engine's file in it")
        if file.suffix == ONNX:
            demand_sound(file)
        for name in request.runtimes or [_runtime_for(file)]:
            target = _target(name, request)
            folder = scratch / str(len(found))
            folder.mkdir()
            found.append((file, _opened_by(target, file, folder)))
    return found


def _runtime_for(file: Path) -> str:
    """The runtime whose own format the ending stands for, or else one that opens it, too."""
    places = {
        name: target.suffixes.index(file.suffix) for name, target in targets().items() if file.suffix in target.suffixes
    }
    if not places:
        known = sorted({suffix for target in targets().values() for suffix in target.suffixes})
        raise UsageError(f"{file}: no runtime opens files of this ending; there are {', '.join(known)}")
    return min(places, key=lambda name: places[name])


def _target(name: str, request: Request) -> Target:
    known = targets()
    if name not in known:
        raise UsageError(f"--runtime {name}: there is none of this name; there are {', '.join(known)}")
    settings: dict[str, object] = {"runtime": name, "threads": request.threads}
    settings |= {"batch": tuple(request.batches)} if request.batches else {}
    settings |= {} if request.device is None else {"device": request.device}
    settings |= {"offline": request.offline, "server": request.server}
    try:
        target = known[name].model_validate(settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UsageError(f"{name}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    target.check()
    return target


def _opened_by(target: Target, file: Path, folder: Path) -> EngineFile:
    if file.suffix in target.suffixes:
        return EngineFile(target, file)
    if file.suffix == ONNX and isinstance(target, OnnxTarget):
        return EngineFile(target, target.from_file(file, folder))
    raise UsageError(f"{file}: {target.runtime} opens {', '.join(target.suffixes)}, not {file.suffix}")
