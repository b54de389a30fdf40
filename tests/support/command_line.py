"""The command line in a process of its own, on this checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = f"""
import runpy, sys
runpy.run_path({str(ROOT / "conftest.py")!r})
from potstill.export import latency
from potstill.pipeline.cli import main
latency.MORE_UNTIL_SECONDS = 0.0  # as in the tests' own process
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str | Path) -> list[str]:
    """What to start."""
    return [sys.executable, "-c", PROGRAM, *map(str, arguments)]
