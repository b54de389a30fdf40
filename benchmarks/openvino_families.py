"""Which networks OpenVINO runs in which precision, and how fast beside ONNX Runtime.

    python -m benchmarks.openvino_families proven [--only densenet vit ...] [--engines fp32 int8 ...]
    python -m benchmarks.openvino_families timed [--only ...] [--grids symmetric]

From the repository's root, with OpenVINO installed. Untrained networks, one thread. `proven` builds every engine and
says how far its outputs are from its model's in PyTorch, on average in their standard deviations, and how many of its
layers run as asked; `timed` sets each engine beside ONNX Runtime's of the same model, and int8 beside fp32, in turns,
at batch 1. Both print a table in Markdown. Families whose name holds one of the words of `--only` are taken.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.families import NETWORKS, made
from potstill.export.deliver import build_engine
from potstill.export.latency import compare
from potstill.export.measurement import Comparison
from potstill.export.onnx_file import OnnxMetadata
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.runtimes.openvino_runtime import OpenVinoTarget
from potstill.export.target import QUANTIZED, EngineFile
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import PotstillError
from potstill.stages.quantize import Quantize
from tests.support.contexts import context_on
from tests.support.families import FAMILIES

AFFINE, SYMMETRIC = "int8", "int8, symmetric grids"
ENGINES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "bf16": ("bf16", {}),
    AFFINE: ("int8", {}),
    SYMMETRIC: ("int8", {"grids": "symmetric"}),
    "int8_weights": ("int8_weights", {}),
    "int4_weights": ("int4_weights", {}),
}
"""The precision of each, and what its `quantize` stage is told."""
TIMED = ("resnet (", "mobilenet_v2", "shufflenet_v2", "vit (", "densenet", "unet", "text_encoder")
"""Families of several kinds whose int8 engines are proven in both runtimes."""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", choices=("proven", "timed"))
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES], default=[*ENGINES])
    parser.add_argument("--grids", choices=("affine", "symmetric"), default="affine")
    arguments = parser.parse_args()
    wanted: list[str] = arguments.only or (TIMED if arguments.table == "timed" else [""])
    families = [family for family in (*NETWORKS, *FAMILIES) if any(word in family for word in wanted)]
    int8 = SYMMETRIC if arguments.grids == "symmetric" else AFFINE
    for line in timed(families, int8) if arguments.table == "timed" else proven(families, arguments.engines):
        print(line, flush=True)


def proven(families: Sequence[str], engines: Sequence[str]) -> Iterator[str]:
    """A row a family: the mean difference from its model, and the layers in int8, or why there is no engine."""
    yield "| family | " + " | ".join(engines) + " |"
    yield "|---|" + "---|" * len(engines)
    problems: list[str] = []
    for family in families:
        data, artifact = made(family)
        cells: list[str] = []
        for name in engines:
            print(f"{family}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    cells.append(difference(name, data, artifact, Path(scratch)))
                except PotstillError as error:
                    cells.append("none, see below")
                    problems.append(f"- {family}, {name}: {error}".replace("\n", " "))
        yield f"| {family} | " + " | ".join(cells) + " |"
    yield from ("", *problems)


def difference(name: str, data: Dataset, artifact: Artifact, folder: Path) -> str:
    """How far one engine that is accepted is from its model; raises what a run would raise."""
    precision, _ = ENGINES[name]
    artifact = quantized(artifact, name, data, folder)
    target = OpenVinoTarget(precision=(precision,))
    built = build_engine(artifact, target, precision, folder, data, metadata=_metadata(data))
    if built.audit is None:
        return f"{built.parity.mean_relative:.1e}"
    num_so = sum(layer.precision == built.audit.precision for layer in built.audit.layers)
    return f"{built.parity.mean_relative:.1e}, {num_so} of {len(built.audit.layers)}"


def quantized(artifact: Artifact, name: str, data: Dataset, folder: Path) -> Artifact:
    """The artifact as an engine of `ENGINES` is made of it: calibrated, not trained."""
    precision, settings = ENGINES[name]
    if precision not in QUANTIZED:
        return artifact
    stage = Quantize.model_validate({"scheme": precision, "recover": {"epochs": 0}, **settings})
    return stage.run(artifact, context_on(data, folder / "quantize"))


def timed(families: Sequence[str], int8: str) -> Iterator[str]:
    """A row a family: both runtimes' fp32 and int8 engines beside one another."""
    yield (
        "| family | OpenVINO fp32, int8 (ms) | int8 over fp32 in OpenVINO | in ONNX Runtime "
        "| OpenVINO over ONNX Runtime, fp32 | int8 |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    for family in families:
        print(family, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                yield f"| {family} | " + " | ".join(_speeds(family, int8, Path(scratch))) + " |"
            except PotstillError as error:
                yield f"| {family} | none: {error} | | | | |".replace("\n", " ")


def _speeds(family: str, int8: str, folder: Path) -> Iterator[str]:
    data, artifact = made(family)
    inputs = {1: numpy_inputs(data.example(1))}

    def beside(candidate: EngineFile, baseline: EngineFile) -> Comparison:
        (comparison,) = compare(candidate, baseline, inputs).comparisons
        return comparison

    models = {"fp32": artifact, "int8": quantized(artifact, int8, data, folder)}
    openvino, onnxruntime = (
        {precision: _engine(target, model, precision, data, folder) for precision, model in models.items()}
        for target in (OpenVinoTarget(precision=("fp32", "int8")), OnnxRuntimeTarget(precision=("fp32", "int8")))
    )
    yield from _cells(openvino, onnxruntime, beside)


def _cells(
    openvino: Mapping[str, EngineFile],
    onnxruntime: Mapping[str, EngineFile],
    beside: Callable[[EngineFile, EngineFile], Comparison],
) -> Iterator[str]:
    ours = beside(openvino["int8"], openvino["fp32"])
    yield f"{ours.baseline.p50_ms:.3f}, {ours.candidate.p50_ms:.3f}"
    yield _ratio(ours)
    yield _ratio(beside(onnxruntime["int8"], onnxruntime["fp32"]))
    for precision in ("fp32", "int8"):
        yield _ratio(beside(openvino[precision], onnxruntime[precision]))


def _engine(
    target: OpenVinoTarget | OnnxRuntimeTarget, model: Artifact, precision: str, data: Dataset, folder: Path
) -> EngineFile:
    place = folder / f"{target.runtime}-{precision}"
    place.mkdir()
    return EngineFile(target, build_engine(model, target, precision, place, data, metadata=_metadata(data)).path)


def _metadata(data: Dataset) -> OnnxMetadata:
    return OnnxMetadata(recipe_hash="", stage="benchmark", classes=data.classes)


def _ratio(found: Comparison) -> str:
    return f"{found.ratio:.2f}× ({found.interval.low:.2f} to {found.interval.high:.2f})"


if __name__ == "__main__":
    main()
