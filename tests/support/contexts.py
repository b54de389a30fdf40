"""A stage's context as tests give it."""

from pathlib import Path
from typing import Any

import torch

from potstill.export.bench import TargetBench
from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
from potstill.pipeline.data import Dataset
from potstill.pipeline.journal import Journal
from potstill.pipeline.progress import Silent
from potstill.pipeline.task import Classification, Regression
from potstill.stages.stage import Context


def context_on(data: Dataset, checkpoints: Path, **settings: Any) -> Context:
    """On the CPU in float32, for the data's task, with a bench; makes the folder.

    Without a teacher unless `settings` name one.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    usual: dict[str, Any] = {
        "device": torch.device("cpu"),
        "precision": "fp32",
        "data": data,
        "task": Regression() if data.targets == "numbers" else Classification(),
        "step": "01-test",
        "seed": 5,
        "checkpoints": checkpoints,
        "progress": Silent(),
        "journal": Journal(),
        "directory": checkpoints,
        "teacher": None,
        "artifacts": {},
        "bench": TargetBench(OnnxRuntimeTarget(), data),
    }
    return Context(**(usual | settings))
