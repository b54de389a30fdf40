"""What potstill's training loop costs beside loops written by hand, in turns on the same cores.

    python benchmarks/training_epoch.py --data .data/cifar10 --weights .data/weights/resnet56.safetensors

ResNet-20 on CIFAR-10, batches of 128 with crops and flips. Six variants, each in a process of its own, train a turn of
steps one after the other, round by round, so that a change of the machine's speed meets all of them:

    ours          `fit` on the labels, bf16 where the processor has it, channels-last
    bare          the same model, data and settings in a loop of plain PyTorch
    bare compiled that loop with the model from `torch.compile`, which is compiled before the first turn that counts
    ours cached   `fit` with `kd` from ResNet-56, whose outputs are stored
    live          a loop by hand with the teacher run in each step, in the precision of `ours`
    live float32  the same in float32, as loops are written first

Prints one JSON object: medians of the rounds' ratios with the sign test's 95 % interval, by the wall clock and by the
processor time that was used, which other programs on the machine disturb less; and each process's peak memory.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from potstill.pipeline.blueprint import Blueprint
from potstill.pipeline.models import load_weights
from potstill.pipeline.networks.resnet import ResNet
from potstill.pipeline.processor import has_bf16

VARIANTS = ("ours", "bare", "bare compiled", "ours cached", "live", "live float32")
RATIOS = (("ours", "bare"), ("bare compiled", "bare"), ("ours cached", "live"), ("ours cached", "live float32"))
BATCH_SIZE = 128
EPOCHS = 100
RATE, MOMENTUM, DECAY, LONGEST = 0.05, 0.9, 5e-4, 2.0


def student_of(arguments: argparse.Namespace) -> nn.Module:
    """Always with the same first weights."""
    torch.manual_seed(0)
    return blueprint(arguments.student, arguments.classes).build()


def teacher_of(arguments: argparse.Namespace) -> nn.Module:
    """Frozen; with first weights where none are given, which no time depends on."""
    torch.manual_seed(1)
    model = blueprint(arguments.teacher, arguments.classes).build()
    if arguments.weights is not None:
        load_weights(model, arguments.weights)
    return model.eval().requires_grad_(requires_grad=False)


def blueprint(depth: int, classes: int) -> Blueprint:
    """Of a CIFAR ResNet with padding shortcuts."""
    reference = ResNet(name="resnet", depth=depth, shortcut="pad")
    return Blueprint(model=reference, input_shapes={"image": (3, 32, 32)}, num_classes=classes)


def mixes(arguments: argparse.Namespace) -> bool:
    """Whether the device trains in bf16, as potstill then does."""
    return torch.cuda.is_bf16_supported() if arguments.device == "cuda" else has_bf16()


def by_hand(arguments: argparse.Namespace, *, bf16: bool, teacher: bool, compiled: bool) -> Iterator[None]:
    """One step each time, as written by someone who knows PyTorch: data in memory, batched augmentation."""
    order = torch.channels_last if bf16 else torch.contiguous_format
    with np.load(arguments.data / "train.npz") as file:
        arrays = [file[name] for name in file.files]
    images = torch.from_numpy(next(array for array in arrays if array.ndim == 4))
    target = torch.from_numpy(next(array for array in arrays if array.ndim == 1)).long()
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    device = torch.device(arguments.device)
    images, target = images.to(device), target.to(device)
    model = student_of(arguments).to(device).to(memory_format=order).train()
    frozen = teacher_of(arguments).to(device).to(memory_format=order) if teacher else None
    groups = [
        {"params": [each for each in model.parameters() if each.ndim >= 2], "weight_decay": DECAY},
        {"params": [each for each in model.parameters() if each.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)
    network = torch.compile(model) if compiled else model
    steps = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * EPOCHS)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1) * 255
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1) * 255
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images), device=device).split(BATCH_SIZE)[:steps]:
            batch = augmented(images[index]).float().sub_(mean).div_(deviation).contiguous(memory_format=order)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                outputs = network(batch).float()
                if frozen is not None:
                    with torch.no_grad():
                        theirs = frozen(batch).float()
            loss = functional.cross_entropy(outputs, target[index])
            if frozen is not None:
                soft, hard = functional.log_softmax(outputs / 4, 1), functional.softmax(theirs / 4, 1)
                loss = 0.1 * loss + 0.9 * 16 * functional.kl_div(soft, hard, reduction="batchmean")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), LONGEST)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            yield


def augmented(images: Tensor) -> Tensor:
    """Padded by 4 and cropped at random, mirrored or not, the whole batch at once."""
    count, device = len(images), images.device
    padded = functional.pad(images, (4, 4, 4, 4))
    side = torch.arange(32, device=device)
    rows = torch.randint(0, 9, (count, 1), device=device) + side
    columns = torch.randint(0, 9, (count, 1), device=device) + side
    columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
    samples = torch.arange(count, device=device)
    turned = padded.permute(0, 2, 3, 1)
    return turned[samples[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Turns:
    """Answers each number of steps on standard input with the seconds that they took."""

    def __init__(self, device: str) -> None:
        self._left = 0
        self._begun = (0.0, 0.0)
        self._cuda = device == "cuda"

    def step_done(self) -> None:
        """Called before the first step and after each; waits for the next turn when one is over."""
        self._left -= 1
        if self._left > 0:
            return
        if self._cuda:
            torch.cuda.synchronize()  # between turns alone: within one, the host runs ahead of its device
        ended = (time.perf_counter(), time.process_time())
        spent = [now - before for now, before in zip(ended, self._begun, strict=True)]
        print(json.dumps({"spent": spent, "peak_bytes": peak_bytes(cuda=self._cuda)}), flush=True)
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        self._left = int(line)
        self._begun = (time.perf_counter(), time.process_time())


def ours(arguments: argparse.Namespace, turns: Turns, *, cached: bool, scratch: Path) -> None:
    """`fit`, the loop itself, which tells a progress of every step."""
    from potstill.export.bench import TargetBench
    from potstill.export.runtimes.onnx_runtime import OnnxRuntimeTarget
    from potstill.pipeline.artifact import Artifact
    from potstill.pipeline.journal import Journal
    from potstill.pipeline.progress import Silent
    from potstill.pipeline.sources.npz import Npz
    from potstill.pipeline.task import Classification
    from potstill.pipeline.teacher import Teacher
    from potstill.pipeline.training import Schedule, TaskObjective, fit
    from potstill.stages.knowledge.objective import DistillationTraining, learn
    from potstill.stages.stage import Context

    class Telling(Silent):
        """Tells the turns of each step."""

        def track(self, description: str, total: int) -> Any:
            """This."""
            return self

        def __enter__(self) -> "Telling":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def advance(self, count: int = 1, **figures: float) -> None:
            """A step is done, or none is yet."""
            if not figures:
                turns.step_done()

    views = 1 if cached else None
    source = Npz(
        source="npz", path=arguments.data.absolute(), normalize="imagenet", augment=("random_crop", "flip"), views=views
    )
    data = source.load(Path())
    device = torch.device(arguments.device)
    data.train.settle(device)
    teacher = None
    if cached:
        artifact = Artifact(model=teacher_of(arguments), blueprint=blueprint(arguments.teacher, arguments.classes))
        teacher = Teacher(artifact, None, arguments.stored or scratch)
    context = Context(
        device=device,
        precision="bf16" if mixes(arguments) else "fp32",
        data=data,
        task=Classification(),
        step="01-epoch",
        seed=0,
        checkpoints=scratch,
        progress=Telling(),
        journal=Journal(),
        directory=scratch,
        teacher=teacher,
        artifacts={},
        bench=TargetBench(OnnxRuntimeTarget(), data),
    )
    settings: dict[str, Any] = {"epochs": EPOCHS, "learning_rate": RATE, "max_gradient_norm": LONGEST}
    if cached:
        training = DistillationTraining.model_validate({"knowledge": ["kd"], **settings})
        student = blueprint(arguments.student, arguments.classes)
        learn(student_of(arguments), training, student, context, name="epoch")
    else:
        fit(student_of(arguments), TaskObjective(context), Schedule(**settings), context, name="epoch")


def worker(arguments: argparse.Namespace) -> None:
    """One variant, until the input ends."""
    torch.set_num_threads(arguments.threads)
    turns = Turns(arguments.device)
    if arguments.worker.startswith("ours"):
        with tempfile.TemporaryDirectory() as scratch:
            ours(arguments, turns, cached=arguments.worker.endswith("cached"), scratch=Path(scratch))
        return
    bf16 = mixes(arguments) and "float32" not in arguments.worker
    turns.step_done()
    teacher, compiled = arguments.worker.startswith("live"), arguments.worker.endswith("compiled")
    for _ in by_hand(arguments, bf16=bf16, teacher=teacher, compiled=compiled):
        turns.step_done()


def peak_bytes(*, cuda: bool) -> int:
    """The most memory that this process has held so far; on a GPU, what its tensors took there."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Variant:
    """A worker's process, which stands still between its turns."""

    def __init__(self, name: str, *options: str) -> None:
        """`options` come behind those of this process, and go before them."""
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--worker", name, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.peak_bytes = 0
        self._answer()

    def turn(self, steps: int) -> tuple[float, float]:
        """Wall and processor seconds of so many steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        wall, used = self._answer()
        return wall, used

    def end(self) -> None:
        """Let the process go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> list[float]:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline())
        self.peak_bytes = answer["peak_bytes"]
        return answer["spent"]


def shortened(arguments: argparse.Namespace, folder: Path) -> Path:
    """A folder with the first images alone to train on."""
    for split, count in (("train", arguments.samples), ("test", 100)):
        with np.load(arguments.data / f"{split}.npz") as file:
            np.savez(folder / f"{split}.npz", **{name: file[name][:count] for name in file.files})
    return folder


def ratio(values: list[float]) -> dict[str, float]:
    """The median, with the interval between the values that the sign test leaves at 95 %."""
    ordered, count = sorted(values), len(values)
    cut, tail = 0, 0.5**count
    while tail <= 0.025 and cut < count // 2:
        cut += 1
        tail += math.comb(count, cut) * 0.5**count
    cut = max(cut - 1, 0)
    return {"median": statistics.median(values), "low": ordered[cut], "high": ordered[-1 - cut]}


def measured(variants: list[Variant], arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All rounds; the first turn of each variant, which allocates and fills the stored outputs, does not count."""
    rounds: list[dict[str, tuple[float, float]]] = []
    for variant in variants:
        wall, _ = variant.turn(3)
        say(f"{variant.name}: ready after {wall:.1f} s")
    for number in range(arguments.rounds):
        turned = variants[number % len(variants) :] + variants[: number % len(variants)]
        rounds.append({variant.name: variant.turn(arguments.steps) for variant in turned})
        say(f"round {number + 1}: " + ", ".join(f"{name} {spent[0]:.2f} s" for name, spent in rounds[-1].items()))
    names = [variant.name for variant in variants]
    pairs = [(one, other) for one, other in RATIOS if one in names and other in names]
    clocks = ("wall", "processor")
    return {
        "step_ms": {
            name: {clock: 1000 * statistics.median(each[name][at] for each in rounds) / arguments.steps
                   for at, clock in enumerate(clocks)}
            for name in names
        },
        "ratios": {
            f"{one} / {other}": {
                clock: ratio([each[one][at] / each[other][at] for each in rounds]) for at, clock in enumerate(clocks)
            }
            for one, other in pairs
        },
        "peak_megabytes": {variant.name: variant.peak_bytes / 1e6 for variant in variants},
    }  # fmt: skip


def main() -> None:
    """Time the variants in turns and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.npz and test.npz")
    parser.add_argument("--weights", type=Path, help="of the teacher, shortcut pad; without, its first ones")
    parser.add_argument("--teacher", type=int, default=56, help="depth of a CIFAR ResNet")
    parser.add_argument("--student", type=int, default=20, help="likewise")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=12, help="a turn's steps")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, help="train on so many of the images: the teacher's pass takes long")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of them, by name")
    parser.add_argument("--stored", type=Path, help="keep the teacher's outputs in this folder for the next time")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    from potstill.export.machine import machine_facts

    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data if arguments.samples is None else shortened(arguments, Path(scratch))
        variants = [Variant(name, "--data", str(data)) for name in arguments.variants.split(",")]
        found = measured(variants, arguments, lambda line: print(line, file=sys.stderr, flush=True))
        for variant in variants:
            variant.end()
    about = {
        "steps": arguments.steps, "rounds": arguments.rounds, "threads": arguments.threads, "bf16": mixes(arguments),
        "machine": machine_facts().cpu_model, "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(found | about, indent=1))


if __name__ == "__main__":
    main()
