"""A profile and a self-check in the terminal."""

from typing import IO

from ...export.self_check import SelfCheck
from ..profile import Profile
from ..progress import duration_text
from .profile_tables import profile_tables, self_check_table
from .terminal import console_on, table_view


def print_profile(profile: Profile, stream: IO[str] | None = None) -> None:
    """The tables, and where they were taken; on standard output unless another stream is given."""
    from rich.text import Text

    console = console_on(stream)
    for table in profile_tables(profile):
        console.print(table_view(table))
    console.print(Text(f"{_where(profile.machine.cpu_model, profile.machine.load)}; inputs: {profile.inputs}"))


def print_self_check(found: SelfCheck, stream: IO[str] | None = None) -> None:
    """The table, and what it took."""
    from rich.text import Text

    console = console_on(stream)
    console.print(table_view(self_check_table(found)))
    turns = f"{min(found.turns)} to {max(found.turns)} turns a comparison"
    where = _where(found.machine.cpu_model, found.machine.load)
    console.print(Text(f"{where}; {turns}; {duration_text(found.seconds)}"))


def _where(cpu_model: str, load: tuple[float, float, float] | None) -> str:
    return cpu_model if load is None else f"{cpu_model}, load {load[0]:.1f}"
