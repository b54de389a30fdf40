"""What NVIDIA's management library (NVML) tells of a GPU: clocks, heat, power, and why its clocks are held back."""

from collections.abc import Callable
from functools import cache
from typing import Any

from ..pipeline.errors import MissingDependency
from .measurement import DeviceState, GpuFacts

REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
"""The bits of ``nvmlClocksEventReasons``, but for 0x1: an idle GPU is not held back."""

SM_CLOCK, MEMORY_CLOCK = 1, 2
"""``NVML_CLOCK_SM`` and ``NVML_CLOCK_MEM``."""
CORE_TEMPERATURE = 0


def reasons_in_words(bits: int) -> tuple[str, ...]:
    """Why a GPU's clocks are held back; a bit that is not known here is given as a number."""
    known = tuple(words for bit, words in REASONS.items() if bits & bit)
    unknown = bits & ~(0x1 | sum(REASONS))
    return (*known, f"reason {unknown:#x}") if unknown else known


@cache
def nvml() -> Any:
    """NVML, initialised; MissingDependency where its Python module or its driver's part of it is not there."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependency(
            "clocks, power and energy of the GPU need NVML's Python module: pip install nvidia-ml-py"
        ) from error
    library: Any = pynvml
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise MissingDependency(f"NVML does not start: {error}; it comes with NVIDIA's driver") from error
    return library


def nvml_handle() -> Any:
    """NVML's handle of the GPU that torch uses, which it may number otherwise; MissingDependency without NVML."""
    import torch

    library = nvml()
    try:
        return library.nvmlDeviceGetHandleByUUID(f"GPU-{_properties(torch.cuda.current_device()).uuid}")
    except library.NVMLError as error:
        raise MissingDependency(f"NVML does not know the GPU that torch uses: {error}") from error


def _properties(index: int) -> Any:
    import torch

    cuda: Any = torch.cuda  # its stubs leave the properties untyped
    return cuda.get_device_properties(index)


def device_state() -> DeviceState | None:
    """The GPU now; None without NVML. What the GPU does not tell is None, and no reason to hold back is none."""
    try:
        library, handle = nvml(), nvml_handle()
    except MissingDependency:
        return None

    def told(ask: Callable[..., Any], *arguments: int) -> Any:
        try:
            return ask(handle, *arguments)
        except library.NVMLError:
            return None

    milliwatts = told(library.nvmlDeviceGetPowerUsage)
    return DeviceState(
        sm_clock_mhz=told(library.nvmlDeviceGetClockInfo, SM_CLOCK),
        max_sm_clock_mhz=told(library.nvmlDeviceGetMaxClockInfo, SM_CLOCK),
        memory_clock_mhz=told(library.nvmlDeviceGetClockInfo, MEMORY_CLOCK),
        temperature_c=told(library.nvmlDeviceGetTemperature, CORE_TEMPERATURE),
        power_w=None if milliwatts is None else milliwatts / 1e3,
        throttling=reasons_in_words(told(library.nvmlDeviceGetCurrentClocksThrottleReasons) or 0),
    )


@cache
def gpu_facts() -> tuple[GpuFacts, ...]:
    """Every GPU that torch can use; drivers only where NVML tells them."""
    import torch

    if not torch.cuda.is_available():
        return ()
    driver, driver_cuda = _driver()
    found: list[GpuFacts] = []
    for index in range(torch.cuda.device_count()):
        properties = _properties(index)
        found.append(
            GpuFacts(
                name=properties.name,
                compute_capability=f"{properties.major}.{properties.minor}",
                memory_bytes=properties.total_memory,
                multiprocessors=properties.multi_processor_count,
                driver=driver,
                driver_cuda=driver_cuda,
                cuda=torch.version.cuda,
            )
        )
    return tuple(found)


def _driver() -> tuple[str | None, str | None]:
    """The driver's version, and the newest CUDA that it runs."""
    try:
        library = nvml()
    except MissingDependency:
        return None, None
    number = int(library.nvmlSystemGetCudaDriverVersion_v2())
    return str(library.nvmlSystemGetDriverVersion()), f"{number // 1000}.{number % 1000 // 10}"
