"""Telling a person how far the work is."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol


class Tracker(Protocol):
    """One piece of work of a known length."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """`count` more units are done; `figures`, such as a loss, are shown beside them."""
        ...


class Progress(Protocol):
    """Where the pipeline says what it does; only the command line decides how it looks."""

    def say(self, message: str) -> None:
        """One line of news."""
        ...

    def track(self, description: str, total: int) -> AbstractContextManager[Tracker]:
        """Work of `total` units, shown with its rate and the time left."""
        ...


class Silent:
    """Says nothing, for tests and for use as a library."""

    def say(self, message: str) -> None:
        """Drop the message."""

    @contextmanager
    def track(self, description: str, total: int) -> Iterator["Silent"]:
        """Count nothing."""
        yield self

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count nothing."""
