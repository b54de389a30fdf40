"""What this machine can build and run, and why not."""

from collections.abc import Iterator

from ..export.machine import machine_facts
from ..export.target import Target, targets
from .errors import PotstillError
from .processor import cpu_flags, has_bf16, has_int8_dot_product

INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def findings() -> Iterator[str]:
    """A line for each fact, the recommendation last."""
    machine = machine_facts()
    yield f"system     {machine.system}, Python {machine.python}"
    yield f"processor  {machine.cpu_model}, {machine.cores} cores, {machine.threads} threads for this process"
    yield f"flags      {', '.join(machine.cpu_flags) or 'none of those that matter'}"
    memory = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    yield f"memory     {memory}"
    yield f"gpu        {machine.gpu or 'none that torch can use'}"
    for library, version in machine.libraries.items():
        yield f"library    {library} {version}"
    for name, target in targets().items():
        yield f"runtime    {name}: {_runtime(name, target)}"
    yield f"training   {'bf16' if has_bf16() else 'fp32: this processor does not multiply bf16 itself'}"
    yield _recommendation()


def _runtime(name: str, target: type[Target]) -> str:
    try:
        target.model_validate({"runtime": name}).check()
    except PotstillError as error:
        return f"no: {error}"
    return "can build and run here"


def _recommendation() -> str:
    if has_int8_dot_product():
        flag = next(flag for flag in INT8_FLAGS if flag in cpu_flags())
        return f"advice     quantize: int8 runs at full rate here ({flag}), with 8-bit weights"
    return (
        "advice     quantize, with 7-bit weights, as `weight_bits: auto` does: without VNNI, 8 bits would overflow; "
        "int8 is faster on a machine that has it, so measure where you deploy"
    )
