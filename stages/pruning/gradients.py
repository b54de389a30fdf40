"""What Taylor importance needs: the gradients of the task's loss on real samples."""

import torch
from torch import nn

from ...pipeline.seeding import generator
from ..stage import Context

SAMPLES = 512
"""Training samples looked at; which ones follows from the step's seed."""


def accumulate_gradients(model: nn.Module, context: Context) -> None:
    """Leave in `model`, in eval mode, the gradients of the loss summed over batches of the training split."""
    train = context.data.train
    order = torch.randperm(len(train), generator=generator(context.seed, "taylor"))[:SAMPLES]
    batches = torch.split(order, context.data.batch_size)
    model.to(context.device).eval().zero_grad(set_to_none=False)
    with context.progress.track("taylor importance", len(order)) as tracker:
        for index in batches:
            batch = context.to_device(train.batch(index))
            loss = context.task.loss(model(*batch.inputs.values()), batch.target)
            torch.autograd.backward(loss)
            tracker.advance(len(index))
    for parameter in model.parameters():
        if parameter.grad is None:  # a parameter that the loss does not depend on
            parameter.grad = torch.zeros_like(parameter)
    model.to("cpu")
