"""Make ``potstill`` mean this checkout, installed or not."""

import os
import sys
import types
from pathlib import Path

# Tests run side by side on few cores; threads of several processes on one core wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_namespace = types.ModuleType("potstill")
_namespace.__path__ = [str(Path(__file__).parent)]
sys.modules["potstill"] = _namespace
