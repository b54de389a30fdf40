"""What an engine was built of and for, kept beside it and checked before it is loaded."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from ...pipeline.errors import ExportError
from ...pipeline.files import write_atomically
from ...pipeline.fingerprints import sha256_of
from ..measurement import Value
from .plan import BuildPlan

SUFFIX = ".json"
VERSION = 1

OLDEST, NEWEST = 10, 11
"""The major versions of TensorRT whose interface this was written for."""


class Device(Value):
    """A GPU, and what drives it."""

    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str
    cuda: str
    driver: str

    @property
    def capability(self) -> str:
        """As NVIDIA writes it, such as ``8.9``."""
        return "{}.{}".format(*self.compute_capability)


LEAST_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}
"""Of the GPUs that compute in a type (CUDA C++ Programming Guide, tensor cores; Ada's and Hopper's for E4M3)."""


def device_problem(device: Device, precision: str) -> str | None:
    """Why engines of a precision cannot be built here; None where they can."""
    major = int(device.tensorrt.split(".")[0])
    if not OLDEST <= major <= NEWEST:
        return f"TensorRT {device.tensorrt} is installed; {OLDEST} and {NEWEST} are what potstill knows"
    least = LEAST_CAPABILITY.get(precision)
    if least is not None and device.compute_capability < least:
        return (
            f"{device.gpu} has compute capability {device.capability}, and {precision} needs {least[0]}.{least[1]}: "
            f"take {precision} out of the target's precision"
        )
    return None


def demand_precision(device: Device, precision: str) -> None:
    """Raise ExportError where engines of a precision cannot be built."""
    problem = device_problem(device, precision)
    if problem is not None:
        raise ExportError(problem)


class TensorFacts(Value):
    """An input or output of an engine."""

    shape: tuple[int | None, ...]
    """None is a free dimension."""
    dtype: str
    """As NumPy names it, such as ``float32``."""
    least: tuple[int, ...] | None = None
    """Of an input with a profile; likewise below."""
    most: tuple[int, ...] | None = None


class Manifest(Value):
    """``model.engine.json``, beside the engine and the ONNX file that it was built from."""

    version: int = VERSION
    engine_sha256: str
    onnx: str
    """The name of the ONNX file in the same folder."""
    onnx_sha256: str
    onnx_beside: dict[str, str] = Field(default_factory=dict[str, str])
    """The sha256 of the files that hold the graph's weights, by their names, where it does not hold them itself."""
    precision: str
    """That was asked for; the graph's own types say what is what."""
    device: Device
    """That it was built on and for."""
    plan: BuildPlan
    inputs: dict[str, TensorFacts]
    outputs: dict[str, TensorFacts]
    timing_cache: str | None
    """Where the builder's measurements are kept, for the same kernels when it is built again."""
    remarks: tuple[str, ...] = ()
    """What the builder said that should be known."""

    @classmethod
    def beside(cls, engine: Path) -> Self | None:
        """That of an engine's file; None where there is none, as for engines from elsewhere."""
        file = manifest_file(engine)
        if not file.is_file():
            return None
        try:
            manifest = cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ExportError(
                f"{file} is damaged, or of another version of potstill ({place}: {first['msg']}).\n"
                "Mend: build the engine again from its ONNX file."
            ) from error
        return manifest

    def write(self, engine: Path) -> None:
        """Beside an engine's file."""
        write_atomically(manifest_file(engine), self.model_dump_json(indent=1).encode())


def manifest_file(engine: Path) -> Path:
    """Of an engine's file."""
    return engine.with_name(engine.name + SUFFIX)


def file_problem(manifest: Manifest, engine: Path) -> str | None:
    """Why an engine's file is not what its manifest describes; None where it is."""
    found = sha256_of(engine)
    if found != manifest.engine_sha256:
        return (
            f"its bytes are not those that were built: sha256 {found[:12]}… instead of {manifest.engine_sha256[:12]}…"
        )
    return None


def onnx_problem(manifest: Manifest, engine: Path) -> str | None:
    """Why the ONNX file beside an engine is not the one that it was built from; None where it is."""
    for name, wanted in {manifest.onnx: manifest.onnx_sha256, **manifest.onnx_beside}.items():
        file = engine.parent / name
        if not file.is_file():
            return f"{file} is missing"
        found = sha256_of(file)
        if found != wanted:
            return f"{file} has changed since: sha256 {found[:12]}… instead of {wanted[:12]}…"
    return None


def device_mismatch(manifest: Manifest, here: Device) -> str | None:
    """Why an engine cannot be used on this machine; None where it can."""
    built, plan = manifest.device, manifest.plan
    if not _version_fits(built.tensorrt, here.tensorrt, compatible=plan.version_compatible):
        return f"it was built with TensorRT {built.tensorrt}, and {here.tensorrt} is installed here"
    capability = f"compute capability {built.capability}", f"{here.gpu} with {here.capability}"
    match plan.hardware_compatibility:
        case "none":
            if (built.gpu, built.compute_capability) != (here.gpu, here.compute_capability):
                return f"it was built for {built.gpu} with {built.capability}, and this is {capability[1]}"
        case "same_compute_capability":
            if built.compute_capability != here.compute_capability:
                return f"it was built for {capability[0]}, and this is {capability[1]}"
        case "ampere_plus":
            if here.compute_capability < (8, 0):
                return f"it was built for Ampere and later, and this is {capability[1]}"
    return None


def _version_fits(built: str, here: str, *, compatible: bool) -> bool:
    """A version-compatible engine runs on the same major version from its own minor one on."""
    if not compatible:
        return built == here
    theirs, ours = (tuple(map(int, version.split(".")[:2])) for version in (built, here))
    return theirs[0] == ours[0] and theirs <= ours


def refusal(engine: Path, problem: str) -> ExportError:
    """What is raised instead of loading an engine."""
    return ExportError(
        f"{engine} cannot be used here: {problem}.\n"
        "Mend: build it again from the ONNX file beside it, for this machine:\n"
        f"  python -c 'from potstill.export.tensorrt.engine_files import rebuild; rebuild(\"{engine}\")'"
    )
