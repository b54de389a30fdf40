"""Telling a person how far the work is."""

import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, TaskID


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
    def track(self, description: str, total: int) -> Generator["Silent"]:
        """Count nothing."""
        yield self

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count nothing."""


def figures_text(figures: Mapping[str, float]) -> str:
    """Such as ``loss 0.231, accuracy 0.957``."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def duration_text(seconds: float) -> str:
    """Such as ``4.2 s``, ``3 min 10 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


@dataclass
class _Lines:
    """One piece of work told in lines, at most one every `interval` seconds."""

    stream: IO[str]
    description: str
    total: int
    interval: float
    done: int = 0
    figures: dict[str, float] = field(default_factory=dict[str, float])
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)
    resumed_at: int | None = None
    """How much was already done when the work began: the first step forward, where it is told at once."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """Count, and say so when it is time."""
        self.done += count
        self.figures |= figures
        now = time.monotonic()
        if self.resumed_at is None:
            self.resumed_at, self.began = self.done, now
        elif now - self.told >= self.interval and self.done < self.total:
            self.told = now
            self.say(self._state(now))

    def say(self, state: str) -> None:
        """One line about this work."""
        end = f", {figures_text(self.figures)}" if self.figures else ""
        print(f"{self.description}: {state}{end}", file=self.stream, flush=True)

    def _state(self, now: float) -> str:
        share = f"{self.done} of {self.total} ({100 * self.done // max(self.total, 1)} %)"
        rate = (self.done - (self.resumed_at or 0)) / max(now - self.began, 1e-9)
        if rate <= 0:
            return share
        return f"{share}, {rate:.3g}/s, {duration_text((self.total - self.done) / rate)} left"


class PlainProgress:
    """Lines for logs and pipes: the news, and how far long work is every few seconds."""

    def __init__(self, stream: IO[str], *, interval: float = 5.0) -> None:
        self.stream = stream
        self._interval = interval

    def say(self, message: str) -> None:
        """One line of news."""
        print(message, file=self.stream, flush=True)

    @contextmanager
    def track(self, description: str, total: int) -> Generator[Tracker]:
        """Lines with the rate and the time left, and one at the end."""
        lines = _Lines(self.stream, description, total, self._interval)
        began = time.monotonic()
        yield lines
        lines.say(f"done in {duration_text(time.monotonic() - began)}")


@dataclass(frozen=True)
class _Bar:
    """One piece of work as a bar."""

    bars: "Bars"
    task: "TaskID"

    def advance(self, count: int = 1, **figures: float) -> None:
        """Move the bar."""
        if figures:
            self.bars.update(self.task, figures=figures_text(figures))
        self.bars.advance(self.task, count)


def _rate_column() -> "ProgressColumn":
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second, of late."""

        def render(self, task: Task) -> Text:
            """Empty until there is a rate."""
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    return Rate()


class RichProgress:
    """Bars with rate and time left, for a terminal; use it as a context manager."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _rate_column(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(file=stream, highlight=False),
            transient=True,
        )

    def __enter__(self) -> "RichProgress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def say(self, message: str) -> None:
        """One line of news, above the bars."""
        self._bars.console.print(message, markup=False)

    @contextmanager
    def track(self, description: str, total: int) -> Generator[Tracker]:
        """A bar that gives way to one line at the end."""
        began = time.monotonic()
        task = self._bars.add_task(description, total=total, figures="")
        try:
            yield _Bar(self._bars, task)
        finally:
            figures = self._bars.tasks[self._bars.task_ids.index(task)].fields["figures"]
            self._bars.remove_task(task)
        seconds = duration_text(time.monotonic() - began)
        self.say(f"{description}: done in {seconds}{', ' if figures else ''}{figures}")
