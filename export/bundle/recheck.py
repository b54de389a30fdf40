"""What a bundle's engine gives for the test split, in a process that has the bundle's folder and no potstill."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ...pipeline.data import Dataset, Split
from ...pipeline.errors import ExportError
from ...pipeline.task import Task
from ..engine import Array
from ..scores import Values
from .reading import originals_of

EXAMPLE = "run.py"

_HARNESS = """
import json, runpy, sys
sys.modules["potstill"] = None  # importing it fails from here on
import numpy as np
bundle, stored, found, batch_size = sys.argv[1:]
example = runpy.run_path(bundle + "/run.py")
size = int(batch_size)
if stored.endswith(".json"):
    with open(stored, encoding="utf-8") as listed:
        originals = json.load(listed)
    batches = (example["read"](originals[start : start + size]) for start in range(0, len(originals), size))
else:
    with np.load(stored, allow_pickle=False) as archive:
        samples = dict(zip(example["MANIFEST"]["inputs"], (archive[name] for name in archive.files)))
    starts = range(0, len(next(iter(samples.values()))), size)
    batches = ({name: values[start : start + size] for name, values in samples.items()} for start in starts)
run = example["opened"]()
outputs = [np.asarray(run(example["prepared"](batch))) for batch in batches]
np.save(found, np.concatenate(outputs), allow_pickle=False)
"""


def outputs_of(bundle: Path, data: Dataset, batch_size: int) -> Array:
    """The outputs (N, …) for the test samples, by the bundle's own example: from files and texts where they were such.

    ExportError with the last words of the process where it fails.
    """
    with TemporaryDirectory(prefix="potstill-") as scratch:
        stored, found = _stored(data, Path(scratch)), Path(scratch) / "outputs.npy"
        done = subprocess.run(
            # -I: neither this folder, nor the user's, nor PYTHONPATH is where it looks for modules.
            # -B: nor does it leave compiled modules in the bundle.
            [sys.executable, "-I", "-B", "-c", _HARNESS, str(bundle), str(stored), str(found), str(batch_size)],
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


def _stored(data: Dataset, scratch: Path) -> Path:
    """A file that tells the harness of the test samples: their originals, or their arrays."""
    (scratch / "originals").mkdir()
    originals = originals_of(data, scratch / "originals")
    if originals is not None:
        stored = scratch / "originals.json"
        stored.write_text(json.dumps(originals), encoding="utf-8")
    else:
        stored = scratch / "samples.npz"
        np.savez(stored, *(tensor.numpy() for tensor in data.test.raw.values()))
    return stored


def values_of(outputs: Array, split: Split, task: Task, batch_size: int) -> Values:
    """What each sample adds to the metric, in the batches that the run's engine was judged in."""
    batches = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    found = [task.values(torch.as_tensor(outputs[each]), split.target[each]).double().numpy() for each in batches]
    return np.concatenate(found)
