"""``potstill profile --self-check``: on a small engine of our own, or on a given file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..export.engine import Array
from ..export.self_check import SelfCheck, self_check, small_engine
from ..export.target import EngineFile, targets
from .errors import UsageError
from .profile_files import Request
from .profiling import examined
from .progress import Progress

OWN_RUNTIME = "onnxruntime"


def self_checked(request: Request, comparisons: int, progress: Progress) -> SelfCheck:
    """Compare as often as asked; raises UsageError for more than one file."""
    with TemporaryDirectory(prefix="potstill-self-check-") as scratch:
        file, inputs = _engine(request, Path(scratch))
        with progress.track("comparisons with a known answer", comparisons) as tracker:
            return self_check(file, inputs, comparisons, tracker.advance)


def _engine(request: Request, scratch: Path) -> tuple[EngineFile, Mapping[str, Array]]:
    if len(request.files) > 1:
        raise UsageError("--self-check takes one file at most; without any, it makes a small engine of its own")
    if not request.files:
        target = targets()[OWN_RUNTIME].model_validate({"runtime": OWN_RUNTIME, "threads": request.threads})
        target.check()
        file, inputs = small_engine(scratch)
        return EngineFile(target, file), inputs
    opened = examined(replace(request, batches=request.batches[:1]), scratch)[0]
    return opened.engine, next(iter(opened.inputs.values()))
