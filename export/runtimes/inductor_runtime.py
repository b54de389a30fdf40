"""PyTorch Inductor ahead of time: one `.pt2` package that PyTorch loads without potstill."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from ...pipeline.errors import ExportError, MissingDependency
from ...pipeline.files import write_atomically
from ...pipeline.quiet import quiet
from ..engine import Array
from ..measurement import OperatorTime
from ..target import HALF, Made, Source, Target

if TYPE_CHECKING:  # torch takes seconds to import, and this module is imported to list the runtimes
    from torch import Tensor, nn

    from ..torch_engine import TorchEngine
    from ..torch_program import Program

FILE = "model.pt2"
SLOW_HALF = (
    "Inductor computes fp16 on CPUs by oneDNN's float16 convolutions, which are mostly slower than those of fp32: "
    "it halves the weights"
)
LOGGERS = ("torch._inductor", "torch._inductor.package.package", "torch._inductor.utils", "torch.utils._pytree")


def _no_quantized(value: object) -> object:
    if isinstance(value, str) and value.startswith("int"):
        raise ValueError(
            f"{value} cannot be built: engines that Inductor compiles from our quantized graphs do not compute what "
            "those graphs compute; allowed: fp32, fp16, bf16, and onnxruntime for int8"
        )
    return value


Precision = Annotated[Literal["fp32", "fp16", "bf16"], BeforeValidator(_no_quantized)]


class InductorTarget(Target, frozen=True, extra="forbid"):
    """The model exported with a free batch and compiled to a shared library for this machine's processor or GPU."""

    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    packages: ClassVar[tuple[str, ...]] = ("torch", "triton")
    runtime: Literal["inductor"] = "inductor"
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("fp32",)
    cuda_graph: bool = True
    """On CUDA: time a recording of all kernels, which the host starts at once, instead of one after the other."""

    @model_validator(mode="after")
    def _only_what_the_device_knows(self) -> Self:
        if self.device == "cpu" and not self.cuda_graph:
            raise ValueError("only `device: cuda` knows cuda_graph")
        return self

    @property
    def label(self) -> str:
        """Such as ``inductor cuda ungraphed``: what changes an engine's numbers tells targets apart."""
        return super().label + ("" if self.cuda_graph else " ungraphed")

    def build_settings(self) -> dict[str, JsonValue]:
        """With what a package is bound to: the version of PyTorch, and the processor or the GPU."""
        import torch

        from ..inductor_package import instructions

        bound: dict[str, JsonValue] = {"torch": str(torch.__version__)}
        if self.device == "cuda" and torch.cuda.is_available():
            bound["capability"] = list(torch.cuda.get_device_capability())
        else:
            bound["instructions"] = list(instructions())
        return super().build_settings() | bound

    def measure_settings(self) -> dict[str, JsonValue]:
        """With how the kernels are started."""
        return super().measure_settings() | ({"cuda_graph": self.cuda_graph} if self.device == "cuda" else {})

    def check(self) -> None:
        """Raise MissingDependency without a C++ compiler (for CUDA also its headers and Triton), ExportError else."""
        from ..torch_engine import demand_device, demand_precision

        demand_device(self.runtime, self.device)
        demand_precision(self.runtime, self.device, self.precision)
        _demand_compiler()
        if self.device == "cuda":
            _demand_cuda_tools()

    def make(self, source: Source, precision: str, folder: Path) -> Made:
        """Compile the artifact's float model into ``model.pt2`` and run it once on the device."""
        from ..torch_program import DTYPES

        if precision not in DTYPES:
            raise ExportError(
                f"{self.label} has no {precision} engines: what Inductor compiles from our quantized graphs does not "
                f"compute what those graphs compute; take {precision} out, or name another target for it"
            )
        self.model_copy(update={"precision": (precision,)}).check()
        example = source.data.example()
        package = self._compiled(source.artifact.model, example, precision)
        write_atomically(folder / FILE, package)
        self._prove(folder / FILE, {name: tensor.numpy() for name, tensor in example.items()})
        return Made(folder / FILE)

    def _prove(self, file: Path, inputs: Mapping[str, Array]) -> None:
        """Run the package once in a process of its own: code that was just compiled may end the one it runs in."""
        from ..engine_process import EngineProcess

        try:
            with EngineProcess(self, file) as process:
                process.bind(inputs)
        except ExportError as error:
            file.unlink()
            raise ExportError(
                f"{self.label}: what Inductor compiled does not run: {error}\n"
                "Mend: another version of PyTorch, or another runtime for this target."
            ) from error

    def open(self, file: Path) -> "TorchEngine":
        """A package that was compiled for this device."""
        from ..torch_engine import TorchEngine

        return TorchEngine(
            file,
            lambda: self._program(file),
            device=self.device,
            threads=self.threads,
            cuda_graph=self.cuda_graph and self.device == "cuda",
        )

    def operator_times(self, file: Path, inputs: Mapping[str, Array]) -> tuple[OperatorTime, ...]:
        """The kernels on a GPU. ExportError on the CPU, where the compiled code leaves no trace in the profile."""
        if self.device == "cpu":
            raise ExportError(
                f"{file}: times of layers are not available for {self.label}: the code that Inductor compiles ahead "
                "of time tells PyTorch's profiler nothing of its kernels"
            )
        with self.open(file) as engine:
            return engine.operator_times(inputs)

    def remarks(self, file: Path, precision: str) -> tuple[str, ...]:
        """What fp16 is worth on a CPU, and what fp32 hangs on outside of potstill on a GPU."""
        if precision == HALF and self.device == "cpu":
            return (SLOW_HALF,)
        if precision == "fp32" and self.device == "cuda":
            return (
                "measured with TF32 off; a program that loads the package decides that anew for cuDNN, by "
                "torch.backends.cudnn.allow_tf32, which is on unless it says otherwise",
            )
        return ()

    def _compiled(self, model: "nn.Module", inputs: "Mapping[str, Tensor]", precision: str) -> bytes:
        from ...pipeline.sharing import plain
        from ..inductor_package import METADATA, Manifest
        from ..onnx_file import OUTPUT
        from ..torch_engine import exact_float32
        from ..torch_program import InPrecision, Signature

        model = plain(model)
        signature = Signature.of(InPrecision(model, "fp32"), inputs, precision, OUTPUT)
        metadata = {METADATA: Manifest.here(signature, self.device).model_dump_json()}
        moved = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        with exact_float32():
            return compiled(InPrecision(model, precision).to(self.device), moved, self.device, precision, metadata)

    def _program(self, file: Path) -> "Program":
        import torch

        from ..inductor_package import kernels, read_manifest
        from ..torch_program import Program, brief

        manifest = read_manifest(file)
        manifest.demand_here(file, self.device)
        # `torch._inductor.aoti_load_package` ends in this class, and imports the compiler before: 100 MB that no engine
        # needs. One caller at a time, so no locks between threads, which a CUDA graph could not hold.
        loader: Any = cast(Any, torch)._C._aoti.AOTIModelPackageLoader
        try:
            run: Callable[[list[Tensor]], list[Tensor]] = loader(str(file), "model", True, 1, -1).run
        except Exception as error:  # whatever the dynamic linker and PyTorch's loader raise
            raise ExportError(
                f"PyTorch {torch.__version__} cannot load {file}: {brief(error)}\nMend: `potstill run` builds it again."
            ) from error
        return Program(manifest.signature, lambda inputs: run(list(inputs))[0], lambda _: kernels(file))


def compiled(
    model: "nn.Module", inputs: "Mapping[str, Tensor]", device: str, precision: str, metadata: Mapping[str, str]
) -> bytes:
    """The package of a model that was cast, its batch free; ExportError when torch.export or Inductor refuses it."""
    import torch

    from ...pipeline.lengths import example_pair
    from ...pipeline.quantization import dynamic_shapes
    from ..torch_program import brief, cast_hint

    example = tuple(example_pair(inputs))
    with quiet(*LOGGERS), TemporaryDirectory(prefix="potstill-inductor-") as scratch, torch.no_grad():
        try:
            program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes(model, inputs))
        except Exception as error:  # torch.export's errors have no common base class
            raise ExportError(
                f"torch.export cannot capture this model: {brief(error)}"
                + (
                    cast_hint(error, precision)
                    or "\nMend: no Python branches on tensor values and no batch size in code."
                )
            ) from error
        return _packaged(program, Path(scratch), _settings(device, metadata))


def _packaged(program: Any, scratch: Path, settings: dict[str, object]) -> bytes:
    """Compile with a cache of its own: nothing of another build is taken for this one, and nothing is left behind."""
    from torch._inductor.utils import fresh_cache

    from ..torch_program import brief

    package = scratch / FILE
    try:
        with fresh_cache(dir=str(scratch)):
            _inductor().aoti_compile_and_package(program, package_path=str(package), inductor_configs=settings)
    except Exception as error:  # a compiler's, Triton's or Inductor's own
        raise ExportError(
            f"PyTorch Inductor cannot compile this model: {brief(error)}{_compiler_words(error)}\n"
            "Mend: look for what the message names; `torch.compile(model)` fails likewise. Or take the target out."
        ) from error
    finally:
        # The processes that compile Triton's kernels would stay as long as this one.
        _inductor(".async_compile").shutdown_compile_workers()
    return package.read_bytes()


def _inductor(module: str = "") -> Any:
    """PyTorch's package, which is private by its name only: its ahead-of-time part is documented there."""
    return import_module(f"torch._inductor{module}")


def _settings(device: str, metadata: Mapping[str, str]) -> dict[str, object]:
    settings: dict[str, object] = {
        # Folds batch norms and packs weights for oneDNN's kernels.
        "freezing": True,
        # Otherwise the number of threads at the time of the build is written into the code.
        "cpp.dynamic_threads": True,
        "aot_inductor.metadata": dict(metadata),
    }
    # Processes that compile are for Triton's kernels only.
    return settings | {"compile_threads": 1} if device == "cpu" else settings


def _compiler_words(error: BaseException) -> str:
    """The first thing that a C++ compiler complained of."""
    lines = (line.strip() for line in str(error).splitlines())
    found = next((line for line in lines if "error:" in line), "")
    return f" ({found[:300]})" if found else ""


def _demand_compiler() -> None:
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        raise MissingDependency(
            f"the target inductor needs a C++ compiler, and there is no {name}: install g++ (apt install g++), or "
            "name another in the variable CXX. Without it, take the target out."
        )


def _demand_cuda_tools() -> None:
    from torch.utils.cpp_extension import CUDA_HOME

    if find_spec("triton") is None:
        raise MissingDependency("the target inductor cuda needs Triton: pip install triton")
    if CUDA_HOME is None:
        raise MissingDependency(
            "the target inductor cuda compiles against CUDA's headers, and finds none: install the CUDA toolkit, or "
            "let the variable CUDA_HOME name a folder with them in `include`, such as that of NVIDIA's pip packages"
        )
