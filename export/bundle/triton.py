"""A model repository for NVIDIA's Triton Inference Server, and its check against Triton's own schema."""

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.errors import ExportError, UsageError
from ..measurement import EngineMeasurement, Machine
from .batching import batching_of
from .deployments import Triton, deployment_of
from .manifest import Manifest
from .rendering import rendered

REPOSITORY, CONFIG, LABELS = "model_repository", "config.pbtxt", "labels.txt"
VERSION = "1"
"""The folder of the model's first version."""

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
"""Triton's names by NumPy's."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    type: str
    dims: tuple[int, ...]
    """Without the batch; -1 is free."""
    is_scalar: bool
    """One number a sample, for which Triton wants a dimension all the same."""
    labels: str = ""


def demand_servable(runtime: str) -> Triton:
    """What is particular to a runtime; UsageError for one whose engines get no repository, with the reason."""
    triton = deployment_of(runtime).triton
    if isinstance(triton, str):
        raise UsageError(f"--triton: {triton}; leave --triton out, or bundle an engine of another runtime")
    return triton


def write_repository(bundle: Path, manifest: Manifest, engine: EngineMeasurement, files: Sequence[Path]) -> None:
    """Put ``model_repository/<name>/`` into the bundle: configuration, labels, and the engine's `files` once more."""
    model = bundle / REPOSITORY / manifest.name
    (model / VERSION).mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, model / VERSION / file.name)
    if manifest.labels:
        (model / LABELS).write_text("".join(f"{' '.join(label.split())}\n" for label in manifest.labels))
    (model / CONFIG).write_text(config_of(manifest, engine), encoding="utf-8")


def config_of(manifest: Manifest, engine: EngineMeasurement) -> str:
    """The text of ``config.pbtxt``."""
    triton, record = demand_servable(manifest.engine.runtime), manifest.engine
    on_gpu = record.device == "cuda"
    settings = {**record.settings, "threads": record.threads}
    labelled = LABELS if manifest.labels else ""
    return rendered(
        "config.pbtxt.jinja",
        target=record.target,
        machine=manifest.measured.machine.gpu if on_gpu else manifest.measured.machine.cpu_model,
        name=manifest.name,
        backend=triton.backend,
        file=record.file,
        batching=batching_of(engine),
        inputs=[_tensor(name, each.dtype, each.shape) for name, each in manifest.inputs.items()],
        outputs=[
            _tensor(name, each.dtype, each.shape, labelled if len(each.shape) == 2 else "")
            for name, each in manifest.outputs.items()
        ],
        instances="" if on_gpu else _room(manifest.measured.machine, record.threads),
        kind_of_device="KIND_GPU" if on_gpu else "KIND_CPU",
        parameters={} if on_gpu else triton.parameters(settings),
        tf32=int(bool(settings.get("tf32"))) if on_gpu and record.runtime == "onnxruntime" else None,
    )


def _room(machine: Machine, threads: int) -> str:
    return f"; {max(1, machine.cores // threads)} of {threads} threads each fit its {machine.cores} cores"


def _tensor(name: str, dtype: str, shape: tuple[int | None, ...], labels: str = "") -> _Tensor:
    if dtype not in TYPES:
        raise ExportError(f"{name} is {dtype}, which has no name in Triton's configuration; leave --triton out")
    dims = tuple(-1 if size is None else size for size in shape[1:])
    return _Tensor(name, TYPES[dtype], dims or (1,), is_scalar=not dims, labels=labels)


def schema() -> Any | None:
    """Triton's protobuf schema as the package tritonclient brings it; None where that is not installed.

    The module is loaded by itself: the package around it would import grpc and others that nothing here needs.
    """
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("tritonclient_model_config_pb2", file)
    if spec is None or spec.loader is None or not file.is_file():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_config(text: str) -> str:
    """Read a configuration by Triton's schema, and say in a sentence what came of it. ExportError where it is wrong."""
    found = schema()
    if found is None:
        return "config.pbtxt was not checked against Triton's schema, which comes with: pip install tritonclient"
    from google.protobuf import text_format

    try:
        text_format.Parse(text, found.ModelConfig())
    except text_format.ParseError as error:
        raise ExportError(f"{CONFIG} does not fit Triton's schema: {error}") from error
    return f"config.pbtxt fits Triton's schema (tritonclient {importlib.metadata.version('tritonclient')})"
