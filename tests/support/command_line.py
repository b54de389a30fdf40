"""The command line in a process of its own, on this checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = f"""
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
runpy.run_path({str(ROOT / "conftest.py")!r})
from potstill.pipeline.cli import main
runpy.run_path({str(ROOT / "tests" / "support" / "brief_timing.py")!r})["make_brief"]()  # as in the tests' own process
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str | Path) -> list[str]:
    """What to start."""
    return [sys.executable, "-c", PROGRAM, *map(str, arguments)]
