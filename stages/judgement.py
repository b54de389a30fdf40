"""How good a model is on training samples, while a stage decides; validation and test samples are never looked at."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, JsonValue
from torch import Tensor

from ..pipeline.data import Batch
from ..pipeline.seeding import generator
from .stage import Context

SAMPLES = 512
"""Training samples that a decision looks at; which ones follows from the step's seed."""


@dataclass(frozen=True)
class Judgement:
    """What a model does on some samples."""

    loss: float
    """The task's mean loss."""
    metric: float
    """The task's metric."""


def sampled(context: Context, samples: int, batch_size: int, what: str) -> Iterator[Batch]:
    """Samples of the training split, unaugmented, on the run's device; the same ones in every run of the seed."""
    train = context.data.train
    drawn = torch.randperm(len(train), generator=generator(context.seed, "judgement"))[:samples]
    with context.progress.track(what, len(drawn)) as tracker:
        for index in torch.split(drawn, batch_size):
            yield context.to_device(train.batch(index))
            tracker.advance(len(index))


@torch.no_grad()
def judged(model: Callable[..., Tensor], samples: Sequence[Batch], context: Context) -> Judgement:
    """The model, which is in eval mode on the samples' device, on all of them."""
    loss = total = count = 0.0
    for batch in samples:
        outputs = model(*batch.inputs.values())
        loss += float(context.task.loss(outputs, batch.target)) * len(batch.target)
        total += float(context.task.values(outputs, batch.target).double().sum())
        count += len(batch.target)
    return Judgement(loss / count, context.task.metric.of(total / count))


def told(rows: Iterable[BaseModel], context: Context) -> list[JsonValue]:
    """Rows for the report, with the task's own word where they say `metric`."""
    word = context.task.metric.name
    dumped = (row.model_dump(mode="json", exclude_none=True) for row in rows)
    return [{key.replace("metric", word): value for key, value in row.items()} for row in dumped]
