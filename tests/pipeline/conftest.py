"""Reports to look at."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """The module that makes sample reports: `samples.sample_report()`."""
    name = "potstill_sample_report"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("sample_report.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
