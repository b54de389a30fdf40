"""Trainings that are stopped midway."""

from potstill.pipeline.progress import Silent


class StoppingProgress(Silent):
    """Stops a training after some steps, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def track(self, description: str, total: int) -> "StoppingProgress":  # type: ignore[override]
        return self

    def __enter__(self) -> "StoppingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def advance(self, count: int = 1, **figures: float) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt
