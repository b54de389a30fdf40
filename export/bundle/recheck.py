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

EXAMPLE = "run.py"

_HARNESS = """
import json, runpy, sys
sys.modules["potstill"] = None  # importing it fails from here on
import numpy as np
bundle, stored, found, batch_size = sys.argv[1:]
example = runpy.run_path(bundle + "/run.py")
if stored.endswith(".json"):
    with open(stored, encoding="utf-8") as file:
        texts = json.load(file)
    count, batch_at = len(texts), lambda part: example["tokenized"](texts[part])
else:
    with np.load(stored, allow_pickle=False) as archive:
        samples = dict(zip(example["MANIFEST"]["inputs"], (archive[name] for name in archive.files)))
    count = len(next(iter(samples.values())))
    batch_at = lambda part: {name: values[part] for name, values in samples.items()}
run, outputs = example["opened"](), []
for start in range(0, count, int(batch_size)):
    outputs.append(np.asarray(run(example["prepared"](batch_at(slice(start, start + int(batch_size)))))))
np.save(found, np.concatenate(outputs), allow_pickle=False)
"""


def outputs_of(bundle: Path, data: Dataset, batch_size: int) -> Array:
    """The outputs (N, …) for the test samples as they were read, texts as texts, by the bundle's own example.

    ExportError with the last words of the process where it fails.
    """
    with TemporaryDirectory(prefix="potstill-") as scratch:
        stored, found = _stored(data, Path(scratch)), Path(scratch) / "outputs.npy"
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


def _stored(data: Dataset, folder: Path) -> Path:
    """The test samples in a file that the harness reads."""
    if data.text is not None:
        file = folder / "samples.json"
        file.write_text(json.dumps(data.text.test), encoding="utf-8")
    else:
        file = folder / "samples.npz"
        np.savez(file, *(tensor.numpy() for tensor in data.test.raw.values()))
    return file


def values_of(outputs: Array, split: Split, task: Task, batch_size: int) -> Values:
    """What each sample adds to the metric, in the batches that the run's engine was judged in."""
    batches = [slice(start, start + batch_size) for start in range(0, len(split), batch_size)]
    found = [task.values(torch.as_tensor(outputs[each]), split.target[each]).double().numpy() for each in batches]
    return np.concatenate(found)
