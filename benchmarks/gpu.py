"""What a training step costs on an NVIDIA GPU: potstill's loop beside a loop by hand, for pairs of CIFAR-100.

    python benchmarks/gpu.py [--pairs 56,20 110,32] [--steps 100] [--rounds 15]

Teacher and student are CIFAR ResNets of the depths of the usual CIFAR-100 pairs, with first weights, on random images
of that data set's shape, number and classes: a step's time depends on none of them. `training_epoch.py` times each
pair's variants in turns, on the GPU's own clock between two synchronisations; memory is what tensors took there. How
well pairs learn is a matter of `knowledge_table.py`, and engines of `gpu_engines.py`. Prints one JSON object; without a
GPU it says "not measured".
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

PAIRS = ("56,20", "110,20", "110,32")
"""Depths of teacher and student, as in Tian et al. 2020, arXiv 1910.10699, table 1."""
IMAGES, CLASSES = 50_000, 100


def random_images(folder: Path, count: int) -> None:
    """`train.npz` and `test.npz` of CIFAR-100's shape."""
    draws = np.random.default_rng(0)
    for split, size in (("train", count), ("test", 1000)):
        images = draws.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{split}.npz", x=images, y=np.arange(size) % CLASSES)


def measured(pair: str, data: Path, arguments: argparse.Namespace) -> object:
    """What `training_epoch.py` says of one pair."""
    teacher, student = pair.split(",")
    command = [
        sys.executable, str(Path(__file__).with_name("training_epoch.py")), "--device", arguments.device,
        "--data", str(data), "--teacher", teacher, "--student", student, "--classes", str(CLASSES),
        "--steps", str(arguments.steps), "--rounds", str(arguments.rounds),
    ]  # fmt: skip
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main() -> None:
    """Measure every pair, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="depths: teacher,student")
    parser.add_argument("--steps", type=int, default=100, help="a turn's steps")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=IMAGES, help="fewer make the teacher's one pass shorter")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: go through the same rows there")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps(dict.fromkeys(arguments.pairs, "not measured: torch sees no GPU here"), indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        random_images(Path(folder), arguments.images)
        found = {pair: measured(pair, Path(folder), arguments) for pair in arguments.pairs}
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "pairs": found}, indent=1))


if __name__ == "__main__":
    main()
