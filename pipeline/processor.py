"""What this machine's processor can do, as far as the pipeline's choices depend on it."""

from functools import cache
from pathlib import Path


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets that Linux reports; empty where there is no /proc/cpuinfo, so that nothing is assumed."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; emulated, a training step takes ten times that of float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def has_int8_dot_product() -> bool:
    """Whether products of uint8 and int8 are summed in 32 bits at once (VNNI, or the dot products of ARM).

    Without it, x86 kernels add pairs of products in 16 bits, which saturate with 8-bit weights.
    """
    return bool(cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
