"""Make ``potstill`` mean this checkout, installed or not."""

import sys
import types
from pathlib import Path

_namespace = types.ModuleType("potstill")
_namespace.__path__ = [str(Path(__file__).parent)]
sys.modules["potstill"] = _namespace
