"""How much faster a student's int8 engine is than its own float engine, side by side.

    python benchmarks/int8_engine.py [--width 32] [--depth 20] [--threads 1]

Post-training quantization of an untrained ResNet: the weights' values do not change the kernels' speed. Prints one JSON
object with the comparison, its confidence interval and the machine.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from potstill.export.bench import TargetBench
from potstill.export.deliver import build_engine, measure_engine
from potstill.export.machine import machine_facts
from potstill.export.onnx_file import OnnxMetadata
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.data import sources
from potstill.pipeline.journal import Journal
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.progress import Silent
from potstill.pipeline.task import Classification
from potstill.pipeline.teacher import Teacher
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context


def main() -> None:
    """Quantize, build both engines, and time them in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    data = sources()["digits"].model_validate({"source": "digits"}).load(Path())
    model = ResNet(depth=arguments.depth, width=arguments.width)
    blueprint = Blueprint(model=model, input_shapes=data.input_shapes, num_classes=data.num_classes)
    torch.manual_seed(0)
    artifact = Artifact(model=blueprint.build().eval(), blueprint=blueprint)
    target = OnnxRuntimeTarget(runtime="onnxruntime", precision=("fp32", "int8"), threads=arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        context = Context(
            device=torch.device("cpu"),
            precision="fp32",
            data=data,
            task=Classification(),
            step="quantize",
            seed=0,
            checkpoints=folder,
            progress=Silent(),
            journal=Journal(),
            directory=folder,
            teacher=Teacher(artifact),
            artifacts={},
            bench=TargetBench(OnnxRuntimeTarget(), data),
        )
        quantized = Quantize.model_validate({"recover": {"epochs": 0}}).run(artifact, context)
        metadata = OnnxMetadata(recipe_hash="", stage="benchmark", classes=data.classes)
        engines = {}
        for precision in ("fp32", "int8"):
            (folder / precision).mkdir()
            engines[precision] = build_engine(quantized, target, precision, folder / precision, data, metadata=metadata)
        measured = measure_engine(engines["int8"], engines["fp32"], target, data, Classification(), file="int8")
    comparison = measured.engine.latency[0]
    result = {
        "model": model.model_dump(),
        "float_p50_ms": comparison.baseline.p50_ms,
        "int8_p50_ms": comparison.candidate.p50_ms,
        "ratio": comparison.ratio,
        "interval": comparison.interval.model_dump(),
        "machine": machine_facts().model_dump(mode="json"),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
