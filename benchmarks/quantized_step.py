"""What training under quantizers costs: a quantized step beside a float step of the same model, batch and precision.

    python benchmarks/quantized_step.py [--rounds 15] [--batch-size 128] [--depth 20] [--width 32] [--threads 1]

The float network has its batch norms, the quantized one has them folded, as `quantize` trains it. The variants run in
turn in one process, in channels-last order, in fp32 and, where the processor has it, in bf16. Prints a table in
Markdown: the median step of each, and the median over the rounds of its ratio to the float step of the same round, with
the interval that holds the median at 95 % (order statistics). `--device cuda` times a GPU.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.fake_quantization import FakeQuantizedModel, fake_quantized
from potstill.pipeline.learned_steps import learn_steps
from potstill.pipeline.models import build
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.processor import has_bf16
from potstill.pipeline.quantization import ActivationRange, Quantization, capture
from potstill.stages.quantization.folding import fold_batch_norms
from potstill.stages.quantization.placement import place

LIMIT = 1.8
"""What a quantized step may take at most, in float steps."""


class Variant:
    """A network in training."""

    def __init__(self, model: nn.Module, images: Tensor, *, bf16: bool) -> None:
        self._model = model.to(images.device).to(memory_format=torch.channels_last)
        self._model.train()
        self._images = images
        self._bf16 = bf16
        self._target = torch.arange(len(images), device=images.device) % 10
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3, momentum=0.9)

    def step_ms(self) -> float:
        """The wall time of one step."""
        device = self._images.device.type
        self._wait()
        begun = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._bf16):
            outputs = self._model(self._images)
        functional.cross_entropy(outputs.float(), self._target).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._wait()
        return 1000 * (time.perf_counter() - begun)

    def _wait(self) -> None:
        if self._images.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Time all variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on_gpu = arguments.device != "cpu"
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"ResNet-{arguments.depth} of width {arguments.width}, batch {arguments.batch_size}, {device}", end="")
    print(f", torch {torch.__version__}; at most {LIMIT} is allowed\n")
    print("| precision | grids | step, ms | float step, ms | ratio (95 % interval) |\n|---|---|---:|---:|---:|")
    for bf16 in (False, True) if on_gpu or has_bf16() else (False,):
        for name, ratios, steps, floats in measured(arguments, bf16=bf16):
            low, high = median_interval(ratios)
            ratio = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
            medians = f"{statistics.median(steps):.1f} | {statistics.median(floats):.1f}"
            print(f"| {'bf16' if bf16 else 'fp32'} | {name} | {medians} | {ratio} |", flush=True)


def measured(arguments: argparse.Namespace, *, bf16: bool) -> list[tuple[str, list[float], list[float], list[float]]]:
    """Of each quantized variant the name, its ratios to the float steps of the same rounds, and the steps of both."""
    torch.manual_seed(0)
    images = torch.randn(arguments.batch_size, 3, 32, 32, device=arguments.device)
    images = images.to(memory_format=torch.channels_last)
    model = build(ResNet(depth=arguments.depth, width=arguments.width), {"image": (3, 32, 32)}, 10)
    makers: dict[str, Callable[[], nn.Module]] = {
        "follow the batches": lambda: quantized(model, calibration_follows=True),
        "held": lambda: quantized(model, calibration_follows=False),
        "learned": lambda: with_learned_steps(model),
    }
    variants = {name: Variant(make(), images, bf16=bf16) for name, make in makers.items()}
    plain = Variant(model, images, bf16=bf16)
    for variant in (plain, *variants.values()):
        variant.step_ms()  # the first steps allocate and choose kernels
        variant.step_ms()
    rounds = [(plain.step_ms(), [each.step_ms() for each in variants.values()]) for _ in range(arguments.rounds)]
    floats = [first for first, _ in rounds]
    found: list[tuple[str, list[float], list[float], list[float]]] = []
    for number, name in enumerate(variants):
        steps = [others[number] for _, others in rounds]
        found.append((name, [step / first for step, first in zip(steps, floats, strict=True)], steps, floats))
    return found


def quantized(model: nn.Module, *, calibration_follows: bool) -> FakeQuantizedModel:
    """The model with folded norms under quantizers of 8 bits, whose activations' ranges follow what they see or not."""
    example = {"image": torch.randn(4, 3, 32, 32)}
    folded, _ = fold_batch_norms(model, example)
    placement = place(capture(folded, example))
    grid = ActivationRange(scale=0.02, zero_point=128)
    rectified = ActivationRange(scale=0.02, zero_point=0)
    quantization = Quantization.model_validate(
        {
            "weight_bits": 8,
            "weights": placement.weights,
            "activations": {name: rectified if "relu" in name else grid for name in placement.activations},
            "calibration": {"method": "min_max" if calibration_follows else "mse"},
            "shared": placement.shared,
        }
    )
    return fake_quantized(folded, quantization, example)


def with_learned_steps(model: nn.Module) -> FakeQuantizedModel:
    """The same with scales and zero points as parameters."""
    learning = quantized(model, calibration_follows=False)
    learn_steps(learning, {"image": torch.randn(4, 3, 32, 32)})
    return learning


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with at least 95 %; the extremes where there are too few."""
    ordered, count = sorted(values), len(values)
    tail, first = 0.0, 0
    while (tail := tail + math.comb(count, first) / 2**count) <= 0.025:
        first += 1
    first = max(first - 1, 0)
    return ordered[first], ordered[count - 1 - first]


if __name__ == "__main__":
    main()
