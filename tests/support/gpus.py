"""Why tests of ONNX Runtime's engines on a GPU are skipped where there is none."""

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
