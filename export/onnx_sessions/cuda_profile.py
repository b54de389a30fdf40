"""Operator by operator on a GPU: in a process in which every launch waits until the GPU has done it.

ONNX Runtime's profile holds the host's times, which for a GPU are those of launching. The driver reads the variable
that makes launches wait once, when a process first uses the GPU; hence a process of its own.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from ...pipeline.errors import ExportError
from ..engine import Array
from ..engine_process import python_running
from ..measurement import OperatorTime
from ..target import targets
from .cuda import demand_cuda
from .profile import operator_times

if TYPE_CHECKING:
    from ..runtimes.onnx_runtime import OnnxRuntimeTarget

WAIT = {"CUDA_LAUNCH_BLOCKING": "1"}
TIMES = TypeAdapter(tuple[OperatorTime, ...])


def operator_times_on_cuda(
    target: "OnnxRuntimeTarget", file: Path, inputs: Mapping[str, Array]
) -> tuple[OperatorTime, ...]:
    """As `operator_times`, on the GPU; each holds a launch and a wait, some microseconds, besides the GPU's work."""
    with TemporaryDirectory(prefix="potstill-") as folder:
        given, found = Path(folder) / "inputs.npz", Path(folder) / "times.json"
        # Under numbers: names of inputs may hold what names of files may not.
        np.savez(given, *inputs.values(), allow_pickle=False)
        arguments = (target.model_dump_json(), str(file.absolute()), json.dumps([*inputs]), str(given), str(found))
        ended = subprocess.run(
            python_running(f"{__package__}.cuda_profile", *arguments),
            capture_output=True,
            text=True,
            env=os.environ | WAIT,
            check=False,
        )
        if ended.returncode:
            words = "\n".join(ended.stderr.strip().splitlines()[-12:])
            raise ExportError(f"{file} could not be profiled on the GPU; the last words of the process:\n{words}")
        return TIMES.validate_json(found.read_bytes())


def main(target: str, file: str, names: str, given: str, found: str) -> None:
    """In the process: profile, and leave the times in a file."""
    from ..runtimes.onnx_runtime import OnnxRuntimeTarget

    made = targets()["onnxruntime"].model_validate_json(target)
    assert isinstance(made, OnnxRuntimeTarget)
    demand_cuda(made.provider)
    with np.load(given, allow_pickle=False) as arrays:
        inputs = dict(zip(json.loads(names), (arrays[name] for name in arrays.files), strict=True))
    times = operator_times(Path(file), inputs, made.settings_of(Path(file)))
    Path(found).write_bytes(TIMES.dump_json(times))
