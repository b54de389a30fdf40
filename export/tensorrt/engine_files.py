"""An engine's files: the engine, its manifest, the ONNX file that it was built from and the builder's timing cache."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ...pipeline.errors import ExportError
from ...pipeline.files import write_atomically
from ...pipeline.fingerprints import sha256_of
from .manifest import Manifest, demand_precision, onnx_problem
from .onnx_beside import external_files, read_onnx
from .plan import BuildPlan
from .timing_cache import TimingCache

ENGINE, CACHE = "model.engine", "model.timing"


def build_beside(onnx: Path, engine: Path, plan: BuildPlan, precision: str, timing_cache: Path | None) -> None:
    """Build the engine of an ONNX file in its folder: the manifest is written first, each is whole or not there."""
    from .native.building import serialized_engine
    from .native.device import this_device
    from .native.loading import edges_of

    here = this_device()
    demand_precision(here, precision)
    cache = timing_cache or onnx.with_name(CACHE)
    beside = external_files(read_onnx(onnx), onnx.parent)
    known = TimingCache.load(cache, here)
    built = serialized_engine(onnx, plan, known.content)
    inputs, outputs = edges_of(built.engine, f"the engine of {onnx}", host_code=plan.version_compatible)
    TimingCache.save(cache, built.timing_cache, here)
    manifest = Manifest(
        engine_sha256=hashlib.sha256(built.engine).hexdigest(),
        onnx=onnx.name,
        onnx_sha256=sha256_of(onnx),
        onnx_beside={file.relative_to(onnx.parent).as_posix(): sha256_of(file) for file in beside},
        precision=precision,
        device=here,
        plan=plan,
        inputs=inputs,
        outputs=outputs,
        timing_cache=None if timing_cache is None else str(timing_cache.absolute()),
        remarks=(*((known.refused,) if known.refused else ()), *built.remarks),
    )
    manifest.write(engine)
    write_atomically(engine, built.engine)


def rebuild(file: Path | str) -> Path:
    """Build an engine again from the ONNX file beside it, with the same flags, for the GPU and TensorRT that are here.

    Raises ExportError where it has no manifest, or the ONNX file is not the one that it was built from.
    """
    engine = Path(file)
    manifest = Manifest.beside(engine)
    if manifest is None:
        raise ExportError(f"{engine} has no manifest beside it, which says what it was built from: build it anew")
    problem = onnx_problem(manifest, engine)
    if problem is not None:
        raise ExportError(f"{engine} cannot be built again: {problem}.\nMend: export the model anew.")
    cache = None if manifest.timing_cache is None else Path(manifest.timing_cache)
    build_beside(engine.with_name(manifest.onnx), engine, manifest.plan, manifest.precision, cache)
    return engine


@contextmanager
def nothing_left_of_failure(onnx: Path, *others: Path) -> Generator[None]:
    """Remove what was written for a build, the ONNX file first, when it fails; unless an older engine needs it."""
    try:
        yield
    except BaseException:
        if not onnx.with_name(ENGINE).is_file():
            for file in (onnx, *others, onnx.with_name(CACHE), onnx.with_name(f"{CACHE}.json")):
                file.unlink(missing_ok=True)
        raise
