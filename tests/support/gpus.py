"""Which tests of ONNX Runtime's engines need a GPU, and why they are skipped where there is none."""

import pytest

from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.errors import PotstillError


def _problem() -> str:
    try:
        OnnxRuntimeTarget(device="cuda").check()
    except PotstillError as error:
        return str(error).splitlines()[0]
    return ""


PROBLEM = _problem()
"""Why no session can be made on a GPU here; empty where one can."""

needs_cuda: pytest.MarkDecorator = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
