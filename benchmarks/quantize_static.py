"""Our int8 engine of a trained network beside the one that ONNX Runtime's own `quantize_static` makes of it.

    python -m benchmarks.quantize_static configs/knowledge-cifar10.yaml --set teacher.model.depth=20 --epochs 1

From the repository's root. The recipe's teacher is quantized three times: by `quantize` with calibration alone, by
`quantize` with so many epochs of distillation, and by `quantize_static` (Q/DQ, min-max over as many samples, per
channel, as many weight bits). Prints a table in Markdown: accuracy of each engine on the whole test split, and each
engine's p50 at batch 1, one thread, timed in turns with the fp32 engine and with that of `quantize_static`.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from potstill.export.deliver import OnnxMetadata, build_engine
from potstill.export.latency import compare
from potstill.export.measurement import Comparison
from potstill.export.onnx_file import OUTPUT
from potstill.export.parity import numpy_inputs
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.export.target import EngineFile
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Dataset
from potstill.pipeline.journal import Journal
from potstill.pipeline.plan import Plan
from potstill.pipeline.processor import has_int8_dot_product
from potstill.pipeline.progress import Silent
from potstill.pipeline.quantization import Calibration
from potstill.pipeline.recipe import load_recipe
from potstill.stages.quantize import Quantize
from potstill.stages.recovery import Recovery

TARGET = OnnxRuntimeTarget(precision=("fp32", "int8"))


def main() -> None:
    """Make all engines, then measure them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    plan = Plan.of(load_recipe(arguments.recipe, arguments.overrides), arguments.recipe.parent)
    with tempfile.TemporaryDirectory() as scratch:
        engines = made(plan, arguments.epochs, Path(scratch))
        print("| engine | accuracy % | p50 ms | faster than fp32 | its p50 over quantize_static's |")
        print("|---|---:|---:|---:|---:|")
        for name, file in engines.items():
            beside_floats, beside_theirs = (_timed(file, engines[other], plan.data) for other in ("fp32", THEIRS))
            share = 1 / beside_theirs.ratio, 1 / beside_theirs.interval.high, 1 / beside_theirs.interval.low
            print(
                f"| {name} | {100 * accuracy(file, plan.data):.2f} | {beside_floats.candidate.p50_ms:.3f} | "
                f"{beside_floats.ratio:.2f}× ({beside_floats.interval.low:.2f} to {beside_floats.interval.high:.2f}) | "
                f"{share[0]:.2f} ({share[1]:.2f} to {share[2]:.2f}) |",
                flush=True,
            )


THEIRS = "quantize_static"


def made(plan: Plan, epochs: int, folder: Path) -> dict[str, Path]:
    """The engines' files by name."""
    teacher = plan.initial_artifact()
    names = {"fp32": None, "calibrated": Recovery(epochs=0), f"distilled, {epochs} epochs": Recovery(epochs=epochs)}
    files = {name: _engine(plan, teacher, recovery, folder / name) for name, recovery in names.items()}
    theirs = folder / f"{THEIRS}.onnx"
    quantized_by_onnxruntime(files["fp32"], theirs, plan.data, samples=Calibration().samples)
    return files | {THEIRS: theirs}


def _engine(plan: Plan, artifact: Artifact, recovery: Recovery | None, folder: Path) -> Path:
    folder.mkdir()
    if recovery is not None:
        step, teacher = plan.steps()[-1], plan.teacher_of(artifact)
        context = plan.context(step, folder / "checkpoints", Silent(), Journal(), teacher, {})
        context.checkpoints.mkdir()
        artifact = Quantize(recover=recovery).run(artifact, context)
    precision = "fp32" if artifact.quantization is None else "int8"
    metadata = OnnxMetadata(recipe_hash="", stage="benchmark", classes=plan.data.classes)
    return build_engine(artifact, TARGET, precision, folder, plan.data, metadata=metadata).path


def _timed(candidate: Path, baseline: Path, data: Dataset) -> Comparison:
    (comparison,) = compare(
        EngineFile(TARGET, candidate), EngineFile(TARGET, baseline), {1: numpy_inputs(data.example(1))}
    ).comparisons
    return comparison


def accuracy(file: Path, data: Dataset) -> float:
    """The share of the test split that an engine gets right."""
    correct = 0
    with TARGET.open(file) as engine:
        for batch in data.test.batches(data.batch_size):
            outputs = torch.as_tensor(engine.run(numpy_inputs(batch.inputs))[OUTPUT])
            correct += int((outputs.argmax(1) == batch.target).sum())
    return correct / len(data.test)


def quantized_by_onnxruntime(floats: Path, file: Path, data: Dataset, *, samples: int) -> None:
    """The fp32 engine's model by ONNX Runtime's recommended steps: pre-process, then quantize per channel as Q/DQ."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def batches() -> Iterator[Any]:
        for index in torch.arange(min(samples, len(data.train))).split(data.batch_size):
            yield numpy_inputs(data.train.batch(index).inputs)

    class Samples(CalibrationDataReader):
        """The first training samples, one batch after another."""

        def __init__(self) -> None:
            self._batches = batches()

        def get_next(self) -> Any:
            return next(self._batches, None)

    prepared = file.with_suffix(".prepared.onnx")
    with redirect_stderr(StringIO()):
        quant_pre_process(str(floats), str(prepared))
        quantize_static(
            str(prepared),
            str(file),
            Samples(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=not has_int8_dot_product(),  # 7 bits there, as ours
        )


if __name__ == "__main__":
    main()
