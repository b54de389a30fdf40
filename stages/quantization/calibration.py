"""Finding each activation's grid by looking at real samples."""

import torch
from torch import nn

from ...pipeline.fake_quantization import fake_quantized, quantization_of
from ...pipeline.quantization import ActivationRange, Quantization, capture
from ...pipeline.seeding import generator
from ..stage import Context
from .placement import place

CALIBRATION_SAMPLES = 256


@torch.no_grad()
def calibrated(
    model: nn.Module, asked: Quantization, context: Context, samples: int = CALIBRATION_SAMPLES
) -> Quantization:
    """The placement for the model as it now is, each activation's range the mean of its batches' extremes.

    Of `asked` the bits and the layers in float count; its tensors may be those of a model before it was cut.

    The samples are drawn from the training split without augmentation; nothing is rounded while they are looked at.
    """
    example = context.data.example()
    placement = place(capture(model, example), asked.float_layers)
    unknown = ActivationRange(scale=1.0, zero_point=0)
    quantization = asked.model_copy(
        update={
            "weights": placement.weights,
            "activations": dict.fromkeys(placement.activations, unknown),
            "shared": placement.shared,
        }
    )
    graph = fake_quantized(model, quantization, example)
    for name in placement.activations:
        graph.activation(name).forget()
    split = context.data.train
    order = torch.randperm(len(split), generator=generator(context.seed, "calibration"))[:samples]
    graph.train()
    with graph.rounding(on=False):
        for start in range(0, len(order), context.data.batch_size):
            index = order[start : start + context.data.batch_size]
            graph(*split.batch(index).inputs.values())
    return quantization_of(graph.train(mode=False), quantization)
