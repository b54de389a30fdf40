"""The one training loop: precision, schedule, checkpoints that a kill cannot tear, progress."""

import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from .compiling import Compiled
from .data import Batch, Dataset, Split, moved
from .errors import TrainingError
from .files import write_atomically
from .journal import CurvePoint, Journal
from .processes import ALONE, Processes
from .progress import Progress
from .seeding import derive, generator, seed_global
from .sharding import divides, shared_outputs
from .taps import Outputs, outputs_of
from .task import Task

Precision = Literal["fp32", "bf16"]

CHECKPOINT_SECONDS = 20.0
"""A kill at any moment costs at most this much training."""

GRADIENT_LOOKS = 8
"""In how many epochs of a training the terms' gradients are compared: one backward pass a term each time."""

LARGEST_ADAMW_RATE = 0.009
"""Below the smallest default rate of SGD, so that none of those is taken for AdamW's by omission."""

ADAMW_SECOND_BETA = 0.999

TIMES_RATE = "times_rate"
"""Of a group of parameters, how many times the schedule's rate it learns at."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
"""Their biases are those of `norm_bias_rate`."""

LOSS_CHECK_STEPS = 20
"""How often the losses are looked at: each look makes the device wait for itself."""


class Schedule(BaseModel, frozen=True, extra="forbid"):
    """How long and how fast to train: linear warm-up, cosine decay to zero, SGD with Nesterov momentum or AdamW."""

    epochs: Annotated[int, Field(ge=0)]
    """Passes over the training split; 0 trains nothing."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`adamw` (Loshchilov and Hutter 2019, arXiv 1711.05101) for transformers, with rates of about 0.0005."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    """The peak rate, reached at the end of the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of all steps that the rate rises linearly."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of AdamW, how much of the mean gradient stays from step to step (its first beta)."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Applied to weights of two dimensions and more; norms and biases are left alone."""

    norm_bias_rate: Annotated[float, Field(gt=0)] = 1.0
    """How many times as fast as everything else the biases of norm layers learn, with SGD; 64 in Jordan 2024 (arXiv
    2404.00498)."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 2.0
    """Longer gradients are scaled down to this L2 norm (Pascanu et al. 2013, arXiv 1211.5063)."""

    @model_validator(mode="after")
    def _rate_fits_the_optimizer(self) -> Self:
        if self.optimizer == "adamw" and self.learning_rate > LARGEST_ADAMW_RATE:
            raise ValueError(
                f"`learning_rate` {self.learning_rate:g} is for SGD; AdamW moves every weight by about its rate in "
                f"each step, and diverges above {LARGEST_ADAMW_RATE:g}: give `learning_rate: 0.0005`"
            )
        if self.optimizer == "adamw" and self.norm_bias_rate != 1:
            raise ValueError("`norm_bias_rate` is for SGD: AdamW moves biases by its rate, however small gradients are")
        return self

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate of `step` (from 0) of `num_steps`."""
        rise = self.warmup * num_steps
        if step + 1 <= rise:
            return self.learning_rate * (step + 1) / rise
        progress = (step + 1 - rise) / max(num_steps + 1 - rise, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """What a training uses and does not own."""

    device: torch.device
    precision: Precision
    data: Dataset
    task: Task
    step: str
    """The name of the step, for messages."""
    seed: int
    """The step's own seed: order, augmentation and dropout of every training in it derive from it."""
    checkpoints: Path
    """A folder that survives a kill; its checkpoints belong to exactly this step's settings."""
    progress: Progress
    journal: Journal
    processes: Processes = ALONE
    """Those that train together."""
    compile: bool = False
    """Whether what is trained may run through `torch.compile`."""
    compiled: Compiled = field(default_factory=Compiled)
    """What does."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training split; the samples that are left over differ from epoch to epoch."""
        return max(len(self.data.train) // self.data.batch_size, 1)

    def autocast(self) -> torch.autocast:
        """Mixed precision as the run asked for it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def outputs(self, model: nn.Module, inputs: Mapping[str, Tensor], taps: Collection[str] = ()) -> Outputs:
        """What a network gives for a whole batch, in the run's precision; all processes together run it on the rows."""
        with self.autocast():
            if divides(inputs, self.processes):
                return shared_outputs(model, inputs, taps, self.processes)
            return outputs_of(model, inputs, taps, self.compiled.of(model, taps=bool(taps)))

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the run's device, images in channels-last order."""
        inputs = {name: on_device(tensor, self.device) for name, tensor in batch.inputs.items()}
        return Batch(inputs, moved(batch.target, self.device), batch.index, batch.view)


@dataclass(frozen=True)
class Moment:
    """When in a training a step is."""

    step: int
    """From 0."""
    num_steps: int
    epoch: int
    """From 0."""

    @property
    def progress(self) -> float:
        """The share of the training that is done, from 0 to below 1."""
        return self.step / self.num_steps


class Objective(nn.Module):
    """What a training lowers: weighted terms by name. Its own parameters, such as projectors, are dropped after."""

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """The weighted terms of the loss, each a float32 scalar, of one batch on the device.

        Networks run in the context's mixed precision; what is made of their outputs is computed in float32.
        """
        raise AssertionError("every objective has its own terms")

    def finish(self) -> None:
        """Called once after the last step."""


class TaskObjective(Objective):
    """The task's own loss alone."""

    def __init__(self, context: TrainingContext) -> None:
        super().__init__()
        self._context = context

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """One term, `task`."""
        outputs = self._context.outputs(model, batch.inputs)
        return {"task": self._context.task.loss(outputs.logits, batch.target)}


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; images (N, C, H, W) in channels-last order, which convolutions run faster on."""
    if tensor.ndim == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return moved(tensor, device)


def move(model: nn.Module, device: torch.device, memory_format: torch.memory_format) -> None:
    """Bring a model's tensors to a device, those of four dimensions into the memory order, in place."""
    model.to(device)
    model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue] - torch's stub forgets this argument


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers by name."""
    return cast(dict[str, Tensor], module.state_dict())


def fast_biases(model: nn.Module, schedule: Schedule, name: str) -> set[nn.Parameter]:
    """The biases that have a rate of their own; TrainingError where one is asked for and the model has none."""
    if schedule.norm_bias_rate == 1:
        return set()
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    named = [each for norm in norms for each in norm.named_parameters(recurse=False)]
    biases = {parameter for name, parameter in named if name == "bias" and parameter.requires_grad}
    if not biases:
        raise TrainingError(f"{name}: `norm_bias_rate` is given, but the network has no norm layers; leave it out")
    return biases


def fit(
    model: nn.Module, objective: Objective, schedule: Schedule, context: TrainingContext, *, name: str = "train"
) -> None:
    """Train `model` in place, continuing from the newest checkpoint called `name`; ends on the CPU, in eval mode.

    The result depends on the context's seed, not on how often the training was interrupted.
    Raises TrainingError when a loss is not finite; the last good checkpoint stays. So does it where several processes
    cannot share a batch, or do not hold the same.
    """
    if schedule.epochs == 0:
        return
    training = _Training(model, objective, schedule, context, name)
    training.resume()
    training.meet()
    training.finish()
    training.meet()
    objective.finish()
    move(model, torch.device("cpu"), torch.contiguous_format)
    model.eval()


@dataclass
class _Sums:
    """The running sums of one epoch, kept in checkpoints so that a resumed curve is the undisturbed one."""

    steps: int
    terms: dict[str, float]


class _Training:
    """The state of one training: everything a checkpoint holds, and how to go on from it."""

    def __init__(
        self, model: nn.Module, objective: Objective, schedule: Schedule, context: TrainingContext, name: str
    ) -> None:
        move(model, context.device, torch.channels_last)
        self._model = model
        self._objective = objective.to(context.device)
        self._schedule = schedule
        self._context = context
        self._name = name
        # Apart, so that what is trained beside the model and dropped after does not shorten the model's steps.
        self._apart = [
            [parameter for parameter in module.parameters() if parameter.requires_grad] for module in (model, objective)
        ]
        self._parameters = [parameter for parameters in self._apart for parameter in parameters]
        self._optimizer = self._new_optimizer()
        self._steps_per_epoch = context.steps_per_epoch
        self._num_steps = self._steps_per_epoch * schedule.epochs
        self._step = 0
        self._order: Tensor | None = None
        self._sums = _Sums(0, {})
        self._pending: list[dict[str, Tensor]] = []
        self._gradient_looks = _spread(schedule.epochs, GRADIENT_LOOKS)
        self._gradient_shares: dict[str, float] | None = None
        self._compiled: bool | None = None
        curve = context.journal.curve
        self._first_point = len(curve)
        # A step that trains several times, as generations do, has one curve.
        self._epochs_before = curve[-1].epoch if curve else 0.0

    def _new_optimizer(self) -> torch.optim.Optimizer:
        schedule = self._schedule
        fast = fast_biases(self._model, schedule, self._name)
        biases = [parameter for parameter in self._parameters if parameter in fast]
        vectors = [parameter for parameter in self._parameters if parameter.ndim < 2 and parameter not in fast]
        matrices = [parameter for parameter in self._parameters if parameter.ndim >= 2]
        groups = [
            {"params": matrices, "weight_decay": schedule.weight_decay, TIMES_RATE: 1.0},
            {"params": vectors, "weight_decay": 0.0, TIMES_RATE: 1.0},
            {"params": biases, "weight_decay": 0.0, TIMES_RATE: schedule.norm_bias_rate},
        ]
        momentum = self._schedule.momentum
        if self._schedule.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self._schedule.learning_rate, betas=(momentum, ADAMW_SECOND_BETA))
        return torch.optim.SGD(groups, lr=self._schedule.learning_rate, momentum=momentum, nesterov=momentum > 0)

    @property
    def _checkpoint(self) -> Path:
        return self._context.checkpoints / f"{self._name}.safetensors"

    def meet(self) -> None:
        """Let all processes go on from the main one's numbers. TrainingError where they do not hold the same."""
        processes, batch_size = self._context.processes, self._context.data.batch_size
        if not processes.together:
            return
        if batch_size % processes.count:
            raise TrainingError(
                f"{self._name}: {processes.count} processes cannot share batches of {batch_size} samples evenly; "
                f"choose a `data.batch_size` that is a multiple of {processes.count}, or another number of processes"
            )
        tensors = self._tensors()
        held = {key: list(tensor.shape) for key, tensor in tensors.items()}
        for rank, (step, theirs) in enumerate(processes.each([self._step, cast(Any, held)])):
            if theirs == held and step == self._step:
                continue
            what = "holds other tensors" if theirs != held else f"is at step {step}, not {self._step}"
            raise TrainingError(f"{self._name}: process {rank} {what}; all must see the same run folder, data and code")
        processes.take_over(list(tensors.values()))

    def finish(self) -> None:
        """Train the remaining steps."""
        saved = time.monotonic()
        with self._context.progress.track(self._name, self._num_steps) as tracker:
            tracker.advance(self._step)
            while self._step < self._num_steps:
                self._train_step()
                tracker.advance(1)
                last_of_epoch = self._step % self._steps_per_epoch == 0
                if last_of_epoch or len(self._pending) >= LOSS_CHECK_STEPS:
                    tracker.advance(0, loss=self._look_at_losses())
                if last_of_epoch:
                    self._end_epoch()
                late = time.monotonic() - saved > CHECKPOINT_SECONDS
                if late and self._context.processes.main and self._step < self._num_steps:
                    self._look_at_losses()
                    self._save()
                    saved = time.monotonic()
        self._save()

    def _train_step(self) -> None:
        context = self._context
        epoch, position = divmod(self._step, self._steps_per_epoch)
        if self._order is None or position == 0:
            order_draws = generator(context.seed, self._name, "order", epoch)
            self._order = context.data.train.order(context.data.batch_size, order_draws)
            self._model.train()
            self._objective.train()
        index = self._order[position * context.data.batch_size : (position + 1) * context.data.batch_size]
        # Each step seeds its own draws, so that a resumed training needs no stored generator state.
        seed_global(context.seed, self._name, "step", self._step)
        view = context.data.view(derive(context.seed, self._name, "augment"), epoch)
        batch = context.to_device(context.data.train.batch(index, view=view))
        for group in self._optimizer.param_groups:
            group["lr"] = group[TIMES_RATE] * self._schedule.rate(self._step, self._num_steps)
        moment = Moment(self._step, self._num_steps, epoch)
        terms = self._objective.terms(self._model, batch, moment)
        if position == 0 and epoch in self._gradient_looks:
            self._gradient_shares = gradient_shares(terms, self._model)
        torch.stack(list(terms.values())).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        for parameters in self._apart:
            nn.utils.clip_grad_norm_(parameters, self._schedule.max_gradient_norm)
        self._optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self._optimizer.zero_grad(set_to_none=True)
        self._pending.append({key: term.detach() for key, term in terms.items()})
        self._step += 1
        if context.compile and self._compiled is None:
            self._try_compiling(batch.inputs)

    def _try_compiling(self, inputs: Mapping[str, Tensor]) -> None:
        """Behind the first step, which showed whether the objective reads inside of the model."""
        context = self._context
        if context.processes.together:
            finding = "not compiled: several processes train it"
        else:
            with context.autocast():
                finding = context.compiled.try_on(self._model, inputs, self._num_steps - self._step)
        self._compiled = self._model in context.compiled
        context.progress.say(f"{self._name}: {finding}")

    def _look_at_losses(self) -> float:
        """Add the pending losses to the sums; returns the last one, or raises at the first that is not finite."""
        loss = math.nan
        first = self._step - len(self._pending)
        if not self._pending:
            return loss
        # One wait for the device, however many steps and terms there are.
        found = torch.stack([term for terms in self._pending for term in terms.values()]).cpu().unbind()
        numbers = map(float, found)
        for offset, terms in enumerate(self._pending):
            values = {key: next(numbers) for key in terms}
            loss = sum(values.values())
            if not math.isfinite(loss):
                raise self._not_finite(first + offset, values)
            self._sums.steps += 1
            for key, value in values.items():
                self._sums.terms[key] = self._sums.terms.get(key, 0.0) + value
        self._pending.clear()
        return loss

    def _not_finite(self, step: int, terms: dict[str, float]) -> TrainingError:
        epoch = step // self._steps_per_epoch + 1
        kept = (
            f"the last good checkpoint is kept: {self._checkpoint}"
            if self._checkpoint.exists()
            else "no checkpoint yet"
        )
        shown = ", ".join(f"{key} {value:g}" for key, value in terms.items())
        return TrainingError(
            f"{self._name}: the loss is not finite at step {step + 1} of {self._num_steps} (epoch {epoch}): {shown}; "
            f"{kept}. Lower `learning_rate` (now {self._schedule.learning_rate:g}), lengthen `warmup`, "
            "or train with `precision: fp32`."
        )

    def _end_epoch(self) -> None:
        terms = {key: total / self._sums.steps for key, total in self._sums.terms.items()}
        point = CurvePoint(
            epoch=self._epochs_before + self._step / self._steps_per_epoch,
            loss=sum(terms.values()),
            terms=terms,
            gradient_shares=self._gradient_shares,
            validation=self._validate(),
            learning_rate=self._schedule.rate(self._step - 1, self._num_steps),
        )
        self._context.journal.curve.append(point)
        self._sums = _Sums(0, {})
        self._gradient_shares = None

    def _validate(self) -> float | None:
        split = self._context.data.validation
        return None if split is None else metric_of(self._model, split, self._context)

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        if not self._checkpoint.exists():
            return
        header, stored = _read(self._checkpoint, self._context.device)
        self._model.load_state_dict(_with_prefix(stored, "model."))
        self._objective.load_state_dict(_with_prefix(stored, "objective."))
        for number, parameter in enumerate(self._parameters):
            kept = _with_prefix(stored, f"optimizer.{number}.")
            # Steps are counted on the CPU; the rest lies in the memory order of the parameter.
            self._optimizer.state[parameter] = {
                name: value.cpu() if name == "step" else torch.empty_like(parameter).copy_(value)
                for name, value in kept.items()
            }
        self._step = header["step"]
        self._sums = _Sums(**header["sums"])
        self._gradient_shares = header["gradient_shares"]
        self._compiled = header["compiled"]
        if self._compiled:
            self._context.compiled.compile(self._model)
        self._context.journal.curve.extend(CurvePoint.model_validate(point) for point in header["curve"])
        self._context.progress.say(f"{self._name}: continues at step {self._step + 1} of {self._num_steps}")

    def _save(self) -> None:
        from safetensors.torch import save

        tensors = self._tensors()
        # A step's gradient can be infinite although its loss was not; such weights must not become the last good ones.
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise self._not_finite(self._step - 1, {"weights": math.nan})
        if not self._context.processes.main:
            return
        header = {
            "step": self._step,
            "sums": {"steps": self._sums.steps, "terms": self._sums.terms},
            "gradient_shares": self._gradient_shares,
            "compiled": self._compiled,
            "curve": [point.model_dump() for point in self._context.journal.curve[self._first_point :]],
        }
        whole = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        write_atomically(self._checkpoint, save(whole, metadata={"potstill": json.dumps(header)}))

    def _tensors(self) -> dict[str, Tensor]:
        """All that a training goes on from but its counters."""
        tensors = {f"model.{key}": value for key, value in state_of(self._model).items()}
        tensors |= {f"objective.{key}": value for key, value in state_of(self._objective).items()}
        for number, parameter in enumerate(self._parameters):
            kept = cast(dict[str, Tensor | None], self._optimizer.state[parameter])
            tensors |= {f"optimizer.{number}.{name}": value for name, value in kept.items() if value is not None}
        return tensors


def gradient_shares(terms: dict[str, Tensor], model: nn.Module) -> dict[str, float] | None:
    """The L2 norm of each term's gradient for the model's parameters, over the sum of the norms; None for one term.

    The norms are those of the terms alone: where two terms pull against each other, the step is shorter than either.
    """
    if len(terms) < 2:
        return None
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms: dict[str, float] = {}
    for name, term in terms.items():
        found: Any = ()
        if term.requires_grad:
            found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in found if gradient is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
    total = sum(norms.values())
    return {name: norm / total for name, norm in norms.items()} if 0 < total < math.inf else None


def _spread(count: int, looks: int) -> set[int]:
    """At most so many of the first `count` numbers, evenly spread, the first and the last among them."""
    if count <= looks:
        return set(range(count))
    return {round(look * (count - 1) / (looks - 1)) for look in range(looks)}


def _read(checkpoint: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    with cast(Any, safe_open)(checkpoint, framework="pt", device=str(device)) as file:
        names: list[str] = file.keys()
        return json.loads(file.metadata()["potstill"]), {name: file.get_tensor(name) for name in names}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@torch.no_grad()
def metric_of(model: nn.Module, split: Split, context: TrainingContext) -> float:
    """The task's metric over a split, in eval mode."""
    model.eval()
    sums: list[Tensor] = []
    for batch in split.batches(context.data.batch_size):
        there = context.to_device(batch)
        outputs = context.outputs(model, there.inputs)
        sums.append(context.task.values(outputs.logits, there.target).double().sum())
    return context.task.metric.of(float(torch.stack(sums).sum()) / len(split))
