"""How the engines of each runtime are run without potstill, and by Triton."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from ...pipeline.errors import ExportError

Settings = Mapping[str, JsonValue]


@dataclass(frozen=True)
class Triton:
    """What is particular to a runtime in a ``config.pbtxt``."""

    backend: str
    """The line that names it. Platforms and backends are those of Triton's documentation of 2026, per backend."""
    parameters: Callable[[Settings], dict[str, str]] = lambda settings: {}
    """The backend's settings that make it run as it was measured, on a CPU."""


@dataclass(frozen=True)
class Deployment:
    """One runtime."""

    packages: tuple[str, ...]
    """Of those, the example needs the ones that the engine was measured with; NumPy comes on top."""
    triton: Triton | str
    """Or why there is no repository for Triton."""


def _onnxruntime(settings: Settings) -> dict[str, str]:
    return {"intra_op_thread_count": str(settings.get("threads", 1)), "inter_op_thread_count": "1"}


def _openvino(settings: Settings) -> dict[str, str]:
    return {
        "INFERENCE_NUM_THREADS": str(settings.get("threads", 1)),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
    }


DEPLOYMENTS = {
    "onnxruntime": Deployment(("onnxruntime", "onnxruntime-gpu"), Triton('platform: "onnxruntime_onnx"', _onnxruntime)),
    "openvino": Deployment(("openvino",), Triton('backend: "openvino"', _openvino)),
    "inductor": Deployment(
        ("torch",),
        "only the newest PyTorch backends of Triton read `.pt2` packages (their platform is torch_aoti), each with the "
        "PyTorch that it was built with, and it was not tried with ours",
    ),
    "tensorrt": Deployment(("tensorrt", "torch"), Triton('platform: "tensorrt_plan"')),
}


def deployment_of(runtime: str) -> Deployment:
    """ExportError for a runtime whose engines cannot be bundled."""
    if runtime not in DEPLOYMENTS:
        raise ExportError(
            f"engines of {runtime} cannot be bundled: there is no example that runs them without potstill; "
            f"bundle one of {', '.join(DEPLOYMENTS)}"
        )
    return DEPLOYMENTS[runtime]
