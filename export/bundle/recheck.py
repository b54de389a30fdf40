"""What a bundle's engine gives for the test split, in a process that has the bundle's folder and no potstill."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ...pipeline.data import Split
from ...pipeline.errors import ExportError
from ...pipeline.task import Task
from ..engine import Array
from ..scores import Values

EXAMPLE = "run.py"

_HARNESS = """
import runpy, sys
sys.modules["potstill"] = None  # importing it fails from here on
import numpy as np
bundle, stored, found, batch_size = sys.argv[1:]
example = runpy.run_path(bundle + "/run.py")
with np.load(stored, allow_pickle=False) as archive:
    samples = dict(zip(example["MANIFEST"]["inputs"], (archive[name] for name in archive.files)))
run, outputs = example["opened"](), []
for start in range(0, len(next(iter(samples.values()))), int(batch_size)):
    batch = {name: values[start : start + int(batch_size)] for name, values in samples.items()}
    outputs.append(np.asarray(run(example["prepared"](batch))))
np.save(found, np.concatenate(outputs), allow_pickle=False)
"""


def outputs_of(bundle: Path, split: Split, batch_size: int) -> Array:
    """The outputs (N, …) for a split's samples as they were read, by the bundle's own example.

    ExportError with the last words of the process where it fails.
    """
    with TemporaryDirectory(prefix="potstill-") as scratch:
        stored, found = Path(scratch) / "samples.npz", Path(scratch) / "outputs.npy"
        np.savez(stored, *(tensor.numpy() for tensor in split.raw.values()))
        done = subprocess.run(
            # -I: neither this folder, nor the user's, nor PYTHONPATH is where it looks for modules.
            [sys.executable, "-I", "-c", _HARNESS, str(bundle), str(stored), str(found), str(batch_size)],
            cwd=scratch,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            words = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-12:])
            raise ExportError(
                f"the bundle's {EXAMPLE} failed in a process of its own (exit code {done.returncode}):\n{words}"
            )
        return np.load(found, allow_pickle=False)


def values_of(outputs: Array, split: Split, task: Task, batch_size: int) -> Values:
    """What each sample adds to the metric, in the batches that the run's engine was judged in."""
    batches = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    found = [task.values(torch.as_tensor(outputs[each]), split.target[each]).double().numpy() for each in batches]
    return np.concatenate(found)
