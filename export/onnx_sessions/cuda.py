"""Whether ONNX Runtime can use this machine's GPU, and what is missing where it cannot."""

import ctypes
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from ...pipeline.errors import ExportError, MissingDependency
from .session import FATAL, PROVIDERS, Provider, build_information, onnxruntime

LIBRARIES = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
}
SHARED = "libonnxruntime_providers_shared.so"


@cache
def demand_cuda(provider: Provider) -> None:
    """Raise MissingDependency or ExportError unless sessions with this provider can be made here; says what to do."""
    ort = onnxruntime()
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise MissingDependency(
            f"the installed ONNX Runtime {ort.__version__} has no {PROVIDERS[provider]}: pip uninstall onnxruntime "
            "onnxruntime-gpu, then pip install onnxruntime-gpu (both bring the same folder, so one must go)"
        )
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        raise MissingDependency(
            f"ONNX Runtime {ort.__version__} does not tell which nodes it left to the CPU: "
            "pip install -U onnxruntime-gpu"
        )
    _demand_gpu()
    for each in ("cuda", "tensorrt")[: 1 if provider == "cuda" else 2]:
        problem = load_problem(each)
        if problem is not None:
            raise MissingDependency(f"ONNX Runtime's {PROVIDERS[each]} does not load: {problem}\n{_mend(each)}")
    if provider == "tensorrt":
        _demand_session(ort)


def _demand_gpu() -> None:
    import torch

    if torch.version.cuda is None:
        raise MissingDependency(
            "the installed torch knows no CUDA, and it brings the libraries that ONNX Runtime needs: install the "
            "build of torch for your CUDA version (pytorch.org says which)"
        )
    if not torch.cuda.is_available():
        raise ExportError(
            f"there is no NVIDIA GPU that torch {torch.__version__} can use: look at `nvidia-smi`, and whether its "
            f"driver is new enough for CUDA {torch.version.cuda}. Without one, take the target's `device: cuda` out"
        )


def load_problem(provider: Provider) -> str | None:
    """What the system says when the provider's library and all that it needs are loaded; None when they load.

    ONNX Runtime itself would only go on without it.
    """
    folder = Path(onnxruntime().__file__).parent / "capi"
    problem = _load_problem(folder, provider)
    if problem is not None:
        # Those that pip installed beside it, where torch has not loaded them already; it prints what it does not find.
        with redirect_stdout(StringIO()):
            onnxruntime().preload_dlls()
        problem = _load_problem(folder, provider)
    return problem


def _load_problem(folder: Path, provider: Provider) -> str | None:
    try:
        ctypes.CDLL(str(folder / SHARED), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / LIBRARIES[provider]))
    except OSError as error:
        return str(error)
    return None


def _mend(provider: Provider) -> str:
    built_for = getattr(build_information(), "cuda_version", "13.0")
    if provider == "tensorrt":
        return (
            "Mend: pip install 'tensorrt==10.*', the version that ONNX Runtime's wheels are built with, "
            "or take `provider: cuda`"
        )
    return (
        f"Mend: it is built for CUDA {built_for} and needs its libraries and cuDNN 9: pip install "
        f"'onnxruntime-gpu[cuda,cudnn]', or a torch that is built for CUDA {built_for.split('.')[0]}"
    )


def _demand_session(ort: Any) -> None:
    """Make the smallest session there is: only that tells whether TensorRT's provider really takes part."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["tensorrt"]])
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise ExportError(f"ONNX Runtime makes no session with TensorRT: {error}\n{_mend('tensorrt')}") from error
    chosen = session.get_providers()[0]
    if chosen != PROVIDERS["tensorrt"]:
        raise ExportError(f"ONNX Runtime takes {chosen} instead of TensorRT without saying why\n{_mend('tensorrt')}")
