"""Decoding many images in worker processes of their own, which a damaged image may take down without harm."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingDependency
from ..progress import Tracker
from .pictures import Pictures, Preparation
from .worker import DECODED, NUMBER, READY, REQUEST

IMAGES_A_WORKER = 16
"""A worker takes a third of a second to start, in which another one decodes about so many."""


@dataclass(frozen=True)
class Problem:
    """One image that cannot be used."""

    name: str
    reason: str


def default_workers() -> int:
    """As many as there are cores for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def demand_pillow() -> None:
    """MissingDependency where there is none."""
    try:
        import PIL.Image  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MissingDependency(
            f"images are decoded by Pillow, which does not import ({error}): pip install 'potstill[images]'"
        ) from error


class Workers:
    """Up to `count` worker processes, each started when there is work for it, and ended with the block."""

    def __init__(self, count: int, tracker: Tracker) -> None:
        """`tracker` is told of each image."""
        self._count = count
        self._tracker = tracker
        self._telling = Lock()
        self._started: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._started:
            worker.end()

    def decode(self, pictures: Pictures, preparation: Preparation, rows: NDArray[np.uint8]) -> list[Problem]:
        """Fill `rows` (N, 3, size, size) with the images' pixels; returns those that could not be decoded, in order.

        What a row holds depends on its image alone, not on the number of workers.
        """
        count = max(min(self._count, -(-len(pictures) // IMAGES_A_WORKER)), 1)
        stop = Event()

        def share(first: int) -> list[tuple[int, Problem]]:
            found: list[tuple[int, Problem]] = []
            for number in range(first, len(pictures), count):
                if stop.is_set():
                    break
                reason = _decoded(self._started[first], pictures, number, preparation, rows[number])
                if reason is not None:
                    found.append((number, Problem(pictures.name(number), reason)))
                self._tell(1)
            return found

        self._start(count)
        with ThreadPoolExecutor(count) as threads:
            running = [threads.submit(share, first) for first in range(count)]
            try:
                found = [problem for each in running for problem in each.result()]
            except BaseException:
                stop.set()
                raise
        return [problem for _, problem in sorted(found, key=lambda each: each[0])]

    def skip(self, count: int) -> None:
        """So many images need no decoding."""
        self._tell(count)

    def _tell(self, count: int) -> None:
        with self._telling:
            self._tracker.advance(count)

    def _start(self, count: int) -> None:
        while len(self._started) < count:
            self._started.append(_Worker())
        for worker in self._started:
            worker.demand_ready()


def _decoded(
    worker: "_Worker", pictures: Pictures, number: int, preparation: Preparation, row: NDArray[np.uint8]
) -> str | None:
    try:
        encoded = pictures.encoded(number)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return worker.decode(encoded, preparation, row) if encoded else "is empty"


class _Worker:
    """One process; a new one follows where it ends over an image."""

    def __init__(self) -> None:
        # -P: the folder of the script is not where it looks for modules.
        self._command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        self._process = self._started()
        self._is_ready = False

    def _started(self) -> subprocess.Popen[bytes]:
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=nowhere)

    def demand_ready(self) -> None:
        """Wait until it can decode; DataError where it ends before."""
        if self._is_ready:
            return
        _, answers = self._streams()
        if answers.read(1) != READY:
            self.end()
            told = subprocess.run(self._command, input=b"", capture_output=True, check=False).stderr
            last = told.decode(errors="replace").strip().rpartition("\n")[2]
            raise DataError(f"a process that decodes images does not start: {last or 'it says nothing'}")
        self._is_ready = True

    def end(self) -> None:
        """Whatever it is doing."""
        self._process.kill()
        for stream in self._streams():
            with suppress(BrokenPipeError):  # what it did not live to read
                stream.close()
        self._process.wait()

    def _streams(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def decode(self, encoded: bytes, preparation: Preparation, row: NDArray[np.uint8]) -> str | None:
        """Fill the row (3, size, size), or say why not."""
        try:
            return self._answer(encoded, preparation, row)
        except (BrokenPipeError, EOFError):
            code = self._process.wait()
            self.end()
            self._process, self._is_ready = self._started(), False
            self.demand_ready()
            return f"took its decoding process down (exit code {code})"

    def _answer(self, encoded: bytes, preparation: Preparation, row: NDArray[np.uint8]) -> str | None:
        requests, answers = self._streams()
        requests.write(REQUEST.pack(preparation.resize, preparation.size, len(encoded)) + encoded)
        requests.flush()
        kind = answers.read(1)
        if kind == DECODED:
            row[:] = np.frombuffer(_whole(answers, row.nbytes), np.uint8).reshape(row.shape)
            return None
        return _whole(answers, NUMBER.unpack(_whole(answers, NUMBER.size))[0]).decode()


def _whole(stream: IO[bytes], count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content
