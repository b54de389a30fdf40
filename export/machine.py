"""What this machine is, as far as it explains a measurement."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..pipeline.processor import cpu_flags
from .gpu_state import gpu_facts
from .measurement import Machine

DECISIVE_FLAGS = (
    *("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""The instruction sets for which runtimes have kernels of their own."""

LIBRARIES = (
    *("torch", "torchao", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "numpy", "scikit-learn", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-ml-py"),
)


def machine_facts() -> Machine:
    """Read them now; `load` is the only one that changes between two calls."""
    return Machine(
        cpu_model=_cpu_model(),
        cpu_flags=tuple(flag for flag in DECISIVE_FLAGS if flag in cpu_flags()),
        cores=_cores(),
        threads=_threads(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=_libraries(),
        load=os.getloadavg() if hasattr(os, "getloadavg") else None,
        gpu=next((gpu.name for gpu in gpu_facts()), None),
        gpus=gpu_facts(),
    )


@cache
def _cpu_model() -> str:
    if platform.system() == "Darwin":
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or "unknown"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "unknown")


@cache
def _cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _memory_bytes() -> int | None:
    import psutil

    return psutil.virtual_memory().total


@cache
def _libraries() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
