"""`python -m potstill.pipeline`, and `python -m pipeline` in a checkout where nothing is installed."""

import importlib
import sys

if __package__ == "pipeline":
    import types
    from pathlib import Path

    _namespace = types.ModuleType("potstill")
    _namespace.__path__ = [str(Path(__file__).parent.parent)]
    sys.modules["potstill"] = _namespace

sys.exit(importlib.import_module("potstill.pipeline.cli").main())
