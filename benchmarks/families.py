"""Every family of networks through every stage: which stage pays where, and how int8 compares with `quantize_static`.

    python -m benchmarks.families [--only densenet vit ...]

From the repository's root. Untrained networks, small inputs, batch 1, one thread: latency and size hardly depend on the
weights' values, accuracy is not measured. Each engine is timed in turns with the family's fp32 engine; our int8 engine
also with the one that ONNX Runtime's own `quantize_static` makes of the same fp32 model with the same 160 samples, per
channel, with weights of as many bits. Prints the two tables of `docs/results/families.md` in Markdown.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.quantize_static import quantized_by_onnxruntime
from potstill.export.audit import audited
from potstill.export.deliver import BuiltEngine, OnnxMetadata, build_engine
from potstill.export.engine import Array
from potstill.export.latency import compare
from potstill.export.measurement import Audit, Comparison
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget, optimized
from potstill.export.target import EngineFile
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import Dataset
from potstill.pipeline.errors import PotstillError
from potstill.pipeline.networks.mobilenet_v2 import MobileNetV2
from potstill.pipeline.networks.network import Network
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.networks.resnet_imagenet import ImageNetResNet
from potstill.pipeline.networks.shufflenet_v1 import ShuffleNetV1
from potstill.pipeline.networks.shufflenet_v2 import ShuffleNetV2
from potstill.pipeline.networks.vgg import VGG
from potstill.pipeline.networks.vit import ViT
from potstill.pipeline.networks.wrn import WideResNet
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.prune import Budget, Prune
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Stage
from tests.support.contexts import context_on
from tests.support.families import FAMILIES
from tests.support.family_data import family_artifact, family_data

NETWORKS: Mapping[str, Network] = {
    "resnet (20 layers, 64 channels)": ResNet(depth=20, width=64),
    "resnet, padding shortcuts (20, 32)": ResNet(depth=20, width=32, shortcut="pad"),
    "resnet, bottlenecks (50, 16)": ImageNetResNet(depth=50, width=16, stem="small"),
    "vgg (11 layers)": VGG(depth=11),
    "mobilenet_v2 (0.5)": MobileNetV2(width=0.5),
    "shufflenet_v1 (0.5)": ShuffleNetV1(width=0.5),
    "shufflenet_v2 (0.5)": ShuffleNetV2(width=0.5),
    "wrn (16 layers, 2)": WideResNet(depth=16, widen=2),
    "vit (4 blocks, 192 channels)": ViT(depth=4, width=192, heads=6),
}
"""Those that potstill builds itself; the others are the tests' small ones."""

UNTRAINED = Recovery(epochs=0)
PRUNE = Prune(keep=Budget(channels=0.8), round_to=8, recover=UNTRAINED)
FACTORIZE = Factorize(keep=Keep(energy=0.8), recover=UNTRAINED)
QUANTIZE = Quantize(recover=UNTRAINED)
VARIANTS: Mapping[str, tuple[Stage, ...]] = {
    "fp32": (),
    "pruned": (PRUNE,),
    "factorized": (FACTORIZE,),
    "int8": (QUANTIZE,),
    "all": (PRUNE, FACTORIZE, QUANTIZE),
}


@dataclass(frozen=True)
class Cell:
    """One engine, or why there is none."""

    family: str
    variant: str
    built: BuiltEngine | None
    beside_fp32: Comparison | None
    problem: str = ""

    def __str__(self) -> str:
        if self.built is None or self.beside_fp32 is None:
            return f"| {self.family} | {self.variant} | no engine, see below | | | | |"
        timed, parity, audit = self.beside_fp32, self.built.parity, self.built.audit
        ratio = (
            ""
            if self.variant == "fp32"
            else f"{timed.ratio:.2f}× ({timed.interval.low:.2f} to {timed.interval.high:.2f})"
        )
        share = "" if audit is None else f"{audit.int8_share:.0%}"
        size = f"{self.built.file_bytes / 1024:,.0f}"
        return (
            f"| {self.family} | {self.variant} | {timed.candidate.p50_ms:.3f} | {ratio} | {size} | {share} | "
            f"{parity.max_relative:.1e} |"
        )


def main() -> None:
    """Print both tables, the second one at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[*NETWORKS, *FAMILIES])
    beside: list[str] = []
    problems: list[str] = []
    print("| family | stages | p50 ms | faster than fp32 | KiB | int8 | largest difference |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for family in parser.parse_args().only:
        with tempfile.TemporaryDirectory() as scratch:
            data, artifact = made(family)
            cells = {cell.variant: cell for cell in built(family, artifact, data, Path(scratch))}
            for cell in cells.values():
                print(cell, flush=True)
            problems += [f"- {family}, {cell.variant}: {cell.problem}" for cell in cells.values() if cell.problem]
            beside.append(beside_quantize_static(family, cells, data, Path(scratch)))
    print(
        "\n| family | p50 of quantize_static's over ours | layers in int8: ours | theirs | from fp32: ours | theirs |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    print("\n".join([*beside, "", *problems]))


def made(family: str) -> tuple[Dataset, Artifact]:
    """A family's data and untrained network, whose batch norms have seen a batch."""
    if family in FAMILIES:
        data = family_data(family)
        return data, family_artifact(family, data)
    data = family_data("densenet")  # random images
    blueprint = Blueprint(model=NETWORKS[family], input_shapes=data.input_shapes, num_classes=data.num_classes)
    torch.manual_seed(0)
    model = blueprint.build().train()
    for batch in data.train.batches(32):
        model(*batch.inputs.values())
    return data, Artifact(model=model.eval(), blueprint=blueprint)


def built(family: str, artifact: Artifact, data: Dataset, folder: Path) -> Iterator[Cell]:
    """An engine for every list of stages, timed beside the first one."""
    target = OnnxRuntimeTarget(precision=("fp32", "int8"))
    metadata = OnnxMetadata(recipe_hash="", stage="benchmark", classes=data.classes)
    inputs = {1: numpy_inputs(data.example(1))}
    float_engine: BuiltEngine | None = None
    for variant, stages in VARIANTS.items():
        print(f"{family}: {variant}", file=sys.stderr, flush=True)
        place = folder / variant
        place.mkdir()
        try:
            shaped = artifact
            for number, stage in enumerate(stages):
                shaped = stage.run(shaped, context_on(data, folder / f"{variant}-{number}"))
            precision = "fp32" if shaped.quantization is None else "int8"
            engine = build_engine(shaped, target, precision, place, data, metadata=metadata)
        except PotstillError as error:
            yield Cell(family, variant, None, None, str(error).splitlines()[0])
            continue
        float_engine = float_engine or engine
        (comparison,) = compare(
            EngineFile(target, engine.path), EngineFile(target, float_engine.path), inputs
        ).comparisons
        yield Cell(family, variant, engine, comparison)


def beside_quantize_static(family: str, cells: Mapping[str, Cell], data: Dataset, folder: Path) -> str:
    """A row: speed, share of int8 layers and distance from the fp32 engine's outputs, ours and theirs."""
    floats, ours = cells["fp32"].built, cells["int8"].built
    if floats is None or ours is None or ours.audit is None:
        return f"| {family} | no int8 engine of ours | | | | |"
    theirs = folder / "quantize_static.onnx"
    try:
        quantized_by_onnxruntime(floats.path, theirs, data, samples=len(data.train))
        target = OnnxRuntimeTarget(precision=("int8",))
        (timed,) = compare(
            EngineFile(target, ours.path), EngineFile(target, theirs), {1: numpy_inputs(data.example(1))}
        ).comparisons
        audit = _audit(theirs)
    except Exception as error:  # whatever their tool raises is the row's content
        return f"| {family} | quantize_static: {type(error).__name__}: {str(error).splitlines()[0][:80]} | | | | |"
    distances = [f"{_distance(path, floats.path, data):.3f}" for path in (ours.path, theirs)]
    return (
        f"| {family} | {timed.ratio:.2f}× ({timed.interval.low:.2f} to {timed.interval.high:.2f}) | "
        f"{_counted(ours.audit)} | {_counted(audit)} | {distances[0]} | {distances[1]} |"
    )


def _audit(file: Path) -> Audit:
    import onnx

    return audited(onnx.load(file), optimized(file), None)


def _counted(audit: Audit) -> str:
    count = sum(layer.precision == "int8" for layer in audit.layers)
    return f"{count} of {len(audit.layers)}"


def _distance(file: Path, reference: Path, data: Dataset) -> float:
    """The mean difference of the outputs for the test samples, over the reference's standard deviation."""
    ours, theirs = (_outputs(each, data) for each in (file, reference))
    return float(np.abs(ours - theirs).mean() / theirs.std())


def _outputs(file: Path, data: Dataset) -> Array:
    with OnnxRuntimeTarget().open(file) as engine:
        (output,) = zip(
            *(engine.run(numpy_inputs(batch.inputs)).values() for batch in data.test.batches(32)), strict=True
        )
    return np.concatenate(output)


if __name__ == "__main__":
    main()
