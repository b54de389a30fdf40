"""What this machine can build and run, and why not."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from ..export.energy import RAPL_FOLDER, rapl_counter
from ..export.gpu_state import nvml
from ..export.machine import machine_facts
from ..export.measurement import GpuFacts, Machine, NotMeasured
from ..export.target import Target, targets
from .errors import PotstillError
from .processor import cpu_flags, has_int8_dot_product

INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
FP16_FLAGS = ("amx_fp16", "avx512_fp16", "asimdhp")
"""The instruction sets that multiply such numbers, the fastest first."""

COMPILERS = ("c++", "g++", "clang++")

Able = Mapping[tuple[str, str], bool]
"""Whether a runtime can be used on a device."""


def findings() -> Iterator[str]:
    """A line for each fact, the recommendation last. What cannot be found out says so in its own line."""
    found: list[Machine] = []
    yield from _guarded("machine", lambda: found.append(machine_facts()))
    for machine in found:
        yield from machine_lines(machine)
    yield from _guarded("processor", lambda: processor_lines(cpu_flags()))
    for machine in found:
        yield from _guarded("gpu", lambda machine=machine: gpu_lines(machine.gpus))
    yield from _guarded("nvml", _nvml)
    yield from _guarded("rapl", _rapl)
    yield from _guarded("compiler", lambda: compiler_lines(os.environ, shutil.which))
    able: dict[tuple[str, str], bool] = {}
    yield from _guarded("runtime", lambda: runtime_lines(targets(), able))
    yield f"advice     {advice(able, has_int8_dot_product=has_int8_dot_product())}"


def _guarded(name: str, lines: Callable[[], Iterable[str] | None]) -> Iterator[str]:
    """The lines, or one that says what broke: this is what people call when something is broken."""
    try:
        yield from lines() or ()
    except Exception as error:
        yield f"{name:10} could not be found out: {type(error).__name__}: {_one_line(error)}"


def machine_lines(machine: Machine) -> Iterator[str]:
    """System, processor, memory and libraries."""
    yield f"system     {machine.system}, Python {machine.python}"
    yield f"processor  {machine.cpu_model}, {machine.cores} cores, {machine.threads} threads for this process"
    yield f"flags      {', '.join(machine.cpu_flags) or 'none of those that matter'}"
    memory = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    yield f"memory     {memory}"
    for library, installed in machine.libraries.items():
        yield f"library    {library} {installed}"


def processor_lines(flags: frozenset[str]) -> Iterator[str]:
    """What the processor's flags mean for engines and trainings."""
    int8, bf16, fp16 = ([flag for flag in known if flag in flags] for known in (INT8_FLAGS, BF16_FLAGS, FP16_FLAGS))
    if int8:
        yield f"int8       multiplied and summed at once ({', '.join(int8)}): 8-bit weights run at full rate"
    else:
        yield "int8       no VNNI: x86 kernels add in 16 bits, which 8-bit weights overflow; 7-bit weights are safe"
    if bf16:
        yield f"bf16       multiplied by the processor ({', '.join(bf16)}): trainings on the CPU use it"
    else:
        yield "bf16       emulated, ten times slower than fp32: trainings on the CPU stay in fp32"
    if fp16:
        yield f"fp16       multiplied by the processor ({', '.join(fp16)}), where a runtime has kernels for it"
    else:
        yield "fp16       not multiplied by the processor: an fp16 engine is smaller here, and no faster"


def gpu_lines(gpus: Iterable[GpuFacts]) -> Iterator[str]:
    """Each GPU, and whether the driver is new enough for torch."""
    seen = False
    for gpu in gpus:
        seen = True
        yield (
            f"gpu        {gpu.name}, compute capability {gpu.compute_capability}, "
            f"{gpu.memory_bytes / 2**30:.1f} GiB, {gpu.multiprocessors} multiprocessors"
        )
        if gpu.driver is None:
            yield "driver     unknown, because NVML does not tell"
        else:
            yield f"driver     {gpu.driver}; {_compatibility(gpu.cuda, gpu.driver_cuda)}"
    if not seen:
        yield f"gpu        {_why_no_gpu()}"


def _compatibility(cuda: str | None, driver_cuda: str | None) -> str:
    """Whether a driver runs what torch was built with: by NVIDIA's rule, within a major version any minor one."""
    if cuda is None or driver_cuda is None:
        return "whether it fits torch's CUDA is not known"
    built, runs = (tuple(int(part) for part in each.split(".")[:2]) for each in (cuda, driver_cuda))
    words = f"it runs CUDA up to {driver_cuda}, torch is built with {cuda}"
    if built <= runs:
        return f"{words}: they fit"
    if built[0] == runs[0]:
        return f"{words}: they fit, but kernels that are compiled at run time may not load; a newer driver mends that"
    return f"{words}: too old, install a newer driver or a torch for CUDA {runs[0]}"


def _why_no_gpu() -> str:
    import torch

    try:
        count = nvml().nvmlDeviceGetCount()
    except PotstillError:
        return "none that torch or NVML can see"
    if torch.version.cuda is None:
        return f"NVML sees {count}, but the installed torch is built without CUDA: pytorch.org says which to install"
    number = int(nvml().nvmlSystemGetCudaDriverVersion_v2())
    fits = _compatibility(torch.version.cuda, f"{number // 1000}.{number % 1000 // 10}")
    return f"NVML sees {count}, but torch cannot use them; of the driver: {fits}"


def _nvml() -> Iterator[str]:
    try:
        nvml()
    except PotstillError as error:
        yield f"nvml       no: {_one_line(error)}"
    else:
        yield "nvml       yes: clocks, heat, power and energy of GPUs are measured"


def _rapl() -> Iterator[str]:
    counter = rapl_counter(RAPL_FOLDER)
    if isinstance(counter, NotMeasured):
        yield f"rapl       no: {counter.reason}"
    else:
        yield "rapl       yes: the energy of engines on the processor is measured"


def compiler_lines(environment: Mapping[str, str], which: Callable[[str], str | None]) -> Iterator[str]:
    """The C++ compiler, which Inductor's engines on the CPU are built with."""
    names = [environment["CXX"]] if environment.get("CXX") else COMPILERS
    found = next((path for name in names if (path := which(name)) is not None), None)
    if found is None:
        yield f"compiler   no C++ compiler ({', '.join(names)}): Inductor needs one, such as that of `apt install g++`"
    else:
        yield f"compiler   {found}"


def runtime_lines(kinds: Mapping[str, type[Target]], able: dict[tuple[str, str], bool]) -> Iterator[str]:
    """Every runtime on every device that it knows; fills `able` in."""
    for name, kind in kinds.items():
        for device in get_args(kind.model_fields["device"].annotation):
            problem = _problem(kind, name, device)
            able[name, device] = problem is None
            installed = "; ".join(kind.installed())
            behind = f" ({installed})" if installed else ""
            words = f"can build and run here{behind}" if problem is None else f"no{behind}: {problem}"
            yield f"runtime    {name} {device}: {words}"


def _problem(kind: type[Target], name: str, device: str) -> str | None:
    try:
        kind.model_validate({"runtime": name, "device": device}).check()
    except PotstillError as error:
        return _one_line(error)
    except Exception as error:  # a broken installation raises anything
        return f"it breaks when it is asked: {type(error).__name__}: {_one_line(error)}"
    return None


def advice(able: Able, *, has_int8_dot_product: bool) -> str:
    """One sentence that names a target."""
    if able.get(("tensorrt", "cuda")):
        return (
            "`runtime: tensorrt, device: cuda`, in fp16 and, behind a `quantize` stage, in int8: of the runtimes for "
            "this GPU it alone multiplies convolutions in int8"
        )
    if able.get(("onnxruntime", "cuda")):
        return "`runtime: onnxruntime, device: cuda, precision: [fp16]`: its CUDA provider has no int8 convolutions"
    if able.get(("inductor", "cuda")):
        return "`runtime: inductor, device: cuda, precision: [fp16]`"
    if not able.get(("onnxruntime", "cpu")):
        return "no engine can be built before ONNX Runtime is installed: pip install onnxruntime"
    if has_int8_dot_product:
        return (
            "`runtime: onnxruntime, device: cpu, precision: [int8]` behind a `quantize` stage: int8 runs at full rate"
        )
    return (
        "`runtime: onnxruntime, device: cpu, precision: [int8]` behind a `quantize` stage with 7-bit weights, as "
        "`weight_bits: auto` does: without VNNI, 8 bits would overflow; measure where you deploy"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
