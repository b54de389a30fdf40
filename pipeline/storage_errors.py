"""What a full or write-protected disk means to the person who ran into it."""

import errno
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .errors import PotstillError, RunFolderError

FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def storage_errors(folder: Path) -> Generator[None]:
    """Within the block, a failed write becomes a RunFolderError that says how to mend it; other errors stay."""
    try:
        yield
    except Exception as error:
        sentence = storage_problem(error, folder)
        if sentence is None:
            raise
        raise RunFolderError(sentence) from error


def folder_problem(folder: Path, needed_bytes: int = 0) -> str | None:
    """A sentence that says why a run cannot be written to `folder`, or None. Nothing is created."""
    # Unlike Path.exists, os.access does not raise for what lies in a folder that may not be entered.
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        return f"{existing} is a file, not a folder; remove it, or give the run another name"
    if not os.access(existing, os.W_OK | os.X_OK):
        return _read_only(folder)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        return (
            f"{folder}: {_megabytes(free)} are free, and the run may need {_megabytes(needed_bytes)}; free some space"
        )
    return None


def storage_problem(error: Exception, folder: Path) -> str | None:
    """What a failed write to `folder` means and how to mend it; None for an error of another kind."""
    if isinstance(error, PotstillError):
        return None
    number = _error_number(error)
    if number in FULL:
        free = _megabytes(shutil.disk_usage(folder).free) if folder.exists() else "nothing"
        return f"{folder}: no disk space left ({free} free); free some and run again: finished steps are reused"
    if number == errno.EFBIG:
        return f"{folder}: a file outgrew what this process may write; raise `ulimit -f`, and run again"
    if number in READ_ONLY and _inside(error, folder):
        return _read_only(folder)
    if number in (errno.ENOTDIR, errno.EEXIST) and _inside(error, folder):
        return f"{folder} is not a folder, or a file is in its way; move that file, or give the run another name"
    return None


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # Libraries written in Rust and C++ tell of the system's error in words only.
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found:
        return int(found[1])
    return errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else None


def _inside(error: Exception, folder: Path) -> bool:
    """Whether the error is about something in the folder, or on the way to it; without a file name it is."""
    if not isinstance(error, OSError) or error.filename is None:
        return True
    file = Path(os.fsdecode(error.filename)).absolute()
    return file.is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(file)


def _read_only(folder: Path) -> str:
    return f"{folder} is not writable; change its permissions, or run from a folder that you may write to"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
