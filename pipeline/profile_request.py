"""What the command line asks of ``potstill profile``, read and checked before anything is opened."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ..export.scenarios import OfflineScenario, ServerScenario
from .errors import UsageError
from .profile_files import Request


def request_of(
    files: Sequence[Path],
    runtimes: Sequence[str],
    *,
    device: str | None,
    threads: int,
    batches: str,
    shapes: Sequence[str],
    inputs: Path | None,
    layers: bool,
    offline: bool,
    server_ms: float | None,
) -> Request:
    """The request; raises UsageError for what cannot be read and for options that exclude each other."""
    if inputs is not None and (batches or shapes):
        raise UsageError("--inputs gives the sizes of all inputs: leave out --batch and --shape")
    try:
        server = None if server_ms is None else ServerScenario(p99_ms=server_ms)
    except ValidationError as error:
        raise UsageError(f"--server {server_ms:g}: must be above 0") from error
    return Request(
        files=tuple(files),
        runtimes=tuple(name for each in runtimes for name in each.split(",")),
        device=device,
        threads=threads,
        batches=_sizes("--batch", batches) if batches else (),
        shapes=dict(_named_shape(each) for each in shapes),
        inputs=inputs,
        layers=layers,
        offline=OfflineScenario() if offline else None,
        server=server,
    )


def _named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    # Names of inputs may hold nearly every sign, so the last = is the one.
    name, separator, sizes = text.rpartition("=")
    if not separator or not name:
        raise UsageError(f"--shape {text}: must be a name and sizes, such as input=1,3,224,224")
    return name, _sizes(f"--shape {name}", sizes)


def _sizes(option: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"{option}: must be whole numbers above 0 with commas between them, got {text!r}")
    return tuple(dict.fromkeys(map(int, parts))) if option == "--batch" else tuple(map(int, parts))
