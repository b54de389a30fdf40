"""How much faster a training step is in the precision and memory order that potstill chooses than in plain float32.

    python benchmarks/training_step.py [--rounds 5] [--batch-size 128] [--depth 20] [--width 32]

Both variants run in turn in one process, so that a change of the machine's speed meets both; the ratio is the median
over the rounds. Prints one JSON object.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional

from potstill.pipeline.models import build
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.processor import cpu_flags, has_bf16


class Variant:
    """A ResNet in training, in one precision and memory order."""

    def __init__(self, name: str, arguments: argparse.Namespace, *, bf16: bool, channels_last: bool) -> None:
        self.name = name
        self._bf16 = bf16
        torch.manual_seed(0)
        reference = ResNet(depth=arguments.depth, width=arguments.width)
        order = torch.channels_last if channels_last else torch.contiguous_format
        self._model: nn.Module = build(reference, {"image": (3, 32, 32)}, 10).to(memory_format=order)
        self._images = torch.randn(arguments.batch_size, 3, 32, 32).to(memory_format=order)
        self._target = torch.arange(arguments.batch_size) % 10
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9)

    def step_seconds(self) -> float:
        """The wall time of one step."""
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bf16):
            loss = functional.cross_entropy(self._model(self._images).float(), self._target)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - begun


def main() -> None:
    """Time both variants in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=32)
    arguments = parser.parse_args()
    plain = Variant("float32", arguments, bf16=False, channels_last=False)
    chosen = Variant(
        "bf16, channels last" if has_bf16() else "float32, channels last",
        arguments,
        bf16=has_bf16(),
        channels_last=True,
    )
    for variant in (plain, chosen):
        variant.step_seconds()  # the first step allocates and chooses kernels
    pairs = [(plain.step_seconds(), chosen.step_seconds()) for _ in range(arguments.rounds)]
    result = {
        "plain": {"variant": plain.name, "median_s": statistics.median(pair[0] for pair in pairs)},
        "chosen": {"variant": chosen.name, "median_s": statistics.median(pair[1] for pair in pairs)},
        "ratio": {
            "median": statistics.median(one / other for one, other in pairs),
            "min": min(one / other for one, other in pairs),
            "max": max(one / other for one, other in pairs),
        },
        "threads": torch.get_num_threads(),
        "bf16": sorted(cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
