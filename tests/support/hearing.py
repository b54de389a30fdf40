"""A progress that remembers."""

from potstill.pipeline.progress import Silent


class Hearing(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        """Remember the message."""
        self.said.append(message)
