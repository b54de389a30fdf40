"""One process at a time in a folder, by a lock that dies with its process."""

import fcntl
import json
import os
import socket
import weakref
from pathlib import Path
from typing import IO

from .errors import RunFolderError

NAME = ".lock"


class FolderLock:
    """An flock on a file in the folder. The system drops it when the process ends in any way, so it is never stale."""

    def __init__(self, folder: Path) -> None:
        """Take the lock, or raise RunFolderError that names the process which holds it."""
        self._file: IO[str] = (folder / NAME).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(self._file)
            self._file.close()
            raise RunFolderError(
                f"{folder} is in use by {holder}; wait until it ends, or stop it, or give this run another name"
            ) from error
        except OSError as error:
            self._file.close()
            raise RunFolderError(
                f"{folder}: this file system has no locks ({error.strerror}); put the run on a local disk"
            ) from error
        self._file.truncate(0)
        self._file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._file.flush()
        _held.add(self)

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        _held.discard(self)
        self._file.close()


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        content = json.loads(file.read())
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has the lock and has not yet written its name


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    # A forked worker shares its parent's lock, and would keep it when only the parent is killed.
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
