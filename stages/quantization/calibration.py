"""Finding each activation's grid by looking at real samples."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ...pipeline.data import Batch
from ...pipeline.fake_quantization import FakeQuantizedModel, fake_quantized, quantization_of
from ...pipeline.quantization import ActivationRange, Quantization, capture
from ...pipeline.seeding import generator
from ..stage import Context
from .placement import placed
from .ranges import Histogram, chosen_range


@torch.no_grad()
def calibrated(model: nn.Module, asked: Quantization, context: Context) -> Quantization:
    """The placement for the model as it now is, each activation's range as `asked.calibration` says.

    Of `asked` the settings count; its tensors may be those of a model before it was cut. The samples are drawn from the
    training split without augmentation; nothing is rounded while they are looked at.
    """
    example = context.data.example()
    placement = placed(capture(model, example), asked)
    unknown = ActivationRange(scale=1.0, zero_point=0)
    quantization = asked.model_copy(
        update={
            "weights": placement.weights,
            "activations": dict.fromkeys(placement.activations, unknown),
            "shared": placement.shared,
            "weight_scales": {},
        }
    )
    if not quantization.activations:
        return quantization
    graph = fake_quantized(model, quantization, example)
    with graph.rounding(on=False):
        if asked.calibration.method == "min_max":
            _follow_batches(graph, quantization, context)
        else:
            _choose_ranges(graph, quantization, context)
    return quantization_of(graph, quantization)


def _follow_batches(graph: FakeQuantizedModel, quantization: Quantization, context: Context) -> None:
    for name in quantization.activations:
        graph.activation(name).forget()
    graph.train()
    for batch in samples(quantization, context):
        graph(*batch.inputs.values())
    graph.train(mode=False)


def _choose_ranges(graph: FakeQuantizedModel, quantization: Quantization, context: Context) -> None:
    """In two passes: the extremes first, so that the histograms' bins never have to grow."""
    extremes: dict[str, tuple[float, float]] = {}

    def widen(name: str, values: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(values))
        known = extremes.get(name, (low, high))
        extremes[name] = min(low, known[0]), max(high, known[1])

    _look(graph, quantization, context, widen)
    histograms = {name: Histogram.empty(*ends) for name, ends in extremes.items()}
    _look(graph, quantization, context, lambda name, values: histograms[name].add(values))
    for name, histogram in histograms.items():
        low, high = chosen_range(histogram, quantization.calibration, quantization.grids)
        graph.activation(name).set_range(ActivationRange.spanning(low, high, quantization.grids))


def _look(
    graph: FakeQuantizedModel, quantization: Quantization, context: Context, see: Callable[[str, Tensor], None]
) -> None:
    """Show `see` every activation of every batch."""

    def watcher(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: see(name, arguments[0].detach().float())

    hooks = [graph.activation(name).register_forward_pre_hook(watcher(name)) for name in quantization.activations]
    try:
        for batch in samples(quantization, context):
            graph(*batch.inputs.values())
    finally:
        for hook in hooks:
            hook.remove()


def samples(quantization: Quantization, context: Context) -> Iterator[Batch]:
    """The training samples that `quantization.calibration` looks at, in batches."""
    split = context.data.train
    order = torch.randperm(len(split), generator=generator(context.seed, "calibration"))
    for index in torch.split(order[: quantization.calibration.samples], context.data.batch_size):
        yield split.batch(index)
