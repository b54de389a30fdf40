"""The file of an engine that PyTorch Inductor compiled ahead of time: a zip with a shared library and a manifest."""

import json
import platform
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict

from ..pipeline.errors import ExportError
from ..pipeline.processor import cpu_flags
from .torch_program import Signature

METADATA = "potstill.manifest"
"""The key of the manifest in the package's own metadata, which PyTorch shows by `get_metadata`."""

FORMAT = 1

INSTRUCTIONS = frozenset(
    (
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "popcnt", "adx", "gfni", "sha_ni"),
        *("vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512ifma", "avx512vbmi"),
        *("avx512_vbmi2", "avx512_bitalg", "avx512_vpopcntdq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimddp", "asimdhp", "asimdfhm", "atomics", "i8mm", "bf16", "sve", "sve2", "svebf16", "svei8mm"),
    )
)
"""What a compiler for the processor it runs on may use, as Linux calls it: Inductor compiles with `-march=native`."""

_WRAPPER = ".wrapper.cpp"
_CALLS = re.compile(
    r"aoti_torch_(?:cpu|cuda)_(\w+)\(|^\s*(?:call_|launchKernel\(kernels\w*\.)?((?:cpp_fused|triton)\w*?)_\d+[(,]",
    re.MULTILINE,
)
"""Calls in the C++ code that Inductor wrote; its kernels are numbered."""


class Manifest(BaseModel):
    """Where a package runs, and what it takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = FORMAT
    device: str
    torch: str
    system: str
    machine: str
    """The processor's architecture, such as ``x86_64``."""
    instructions: tuple[str, ...]
    """That the compiler could use."""
    gpu: str | None
    capability: str | None
    """The GPU's compute capability, such as ``9.0``."""
    cuda: str | None
    signature: Signature

    @classmethod
    def here(cls, signature: Signature, device: str) -> Self:
        """Of a package that is compiled on this machine."""
        on_gpu = device == "cuda"
        return cls(
            device=device,
            torch=torch.__version__,
            system=platform.system(),
            machine=platform.machine(),
            instructions=instructions(),
            gpu=torch.cuda.get_device_name() if on_gpu else None,
            capability=".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else None,
            cuda=torch.version.cuda if on_gpu else None,
            signature=signature,
        )

    def demand_here(self, file: Path, device: str) -> None:
        """Raise ExportError, with every reason, unless a package with this manifest runs on this machine's `device`."""
        here = Manifest.here(self.signature, device)
        reasons = [
            f"it was compiled {what} {theirs}, and this is {ours}"
            for what, theirs, ours in (
                ("for the device", self.device, here.device),
                ("by PyTorch", _minor(self.torch), _minor(here.torch)),
                ("on", f"{self.system} {self.machine}", f"{here.system} {here.machine}"),
                ("for compute capability", self.capability, here.capability),
            )
            if theirs != ours
        ]
        missing = sorted(set(self.instructions) - set(here.instructions))
        # Where nothing is known of the processor, nothing can be missed.
        if missing and here.instructions:
            reasons.append(f"its code may use {', '.join(missing)}, which this processor has not")
        if reasons:
            raise ExportError(f"{file} does not run here: {'; '.join(reasons)}.\nMend: build it on this machine.")


def instructions() -> tuple[str, ...]:
    """Those of this processor that a compiler may use; empty where the system does not tell."""
    return tuple(sorted(cpu_flags() & INSTRUCTIONS))


def read_manifest(file: Path) -> Manifest:
    """The manifest of a package whose bytes are whole; loads none of its code. ExportError for anything else."""
    if not file.is_file():
        raise ExportError(f"there is no engine file {file}; run again to build it")
    try:
        with zipfile.ZipFile(file) as package:
            broken = package.testzip()
            stored = None if broken else _metadata(package)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ExportError(
            f"{file} is damaged, or is no .pt2 package: {error}\nMend: `potstill run` builds it again."
        ) from error
    if broken:
        raise ExportError(
            f"{file} is damaged: the bytes of {broken} are not those that were written\n"
            "Mend: `potstill run` builds it again."
        )
    if stored is None:
        raise ExportError(
            f"{file} does not say what it takes and where it runs: it was not compiled by potstill, or is no package "
            "of PyTorch Inductor"
        )
    try:
        return Manifest.model_validate_json(stored)
    except ValueError as error:
        raise ExportError(
            f"{file} was written by another version of potstill: {error}\nMend: `potstill run` builds it again."
        ) from error


def kernels(file: Path) -> Counter[str]:
    """How many kernels of each kind the package's code calls: Inductor's own, and those of PyTorch's libraries."""
    with zipfile.ZipFile(file) as package:
        sources = [package.read(name).decode() for name in package.namelist() if name.endswith(_WRAPPER)]
    called = (each for source in sources for each in _CALLS.findall(source))
    return Counter(library or own for library, own in called)


def _metadata(package: zipfile.ZipFile) -> str | None:
    for name in package.namelist():
        if name.endswith("_metadata.json"):
            values: Any = json.loads(package.read(name))
            if isinstance(values, dict) and METADATA in values:
                return str(cast(dict[str, Any], values)[METADATA])
    return None


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
