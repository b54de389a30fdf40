"""Which layers go back to float: those whose int8 form costs accuracy, and those whose int8 form costs time."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from torch import fx

from ...pipeline.artifact import Artifact
from ...pipeline.bench import Beside
from ...pipeline.data import Batch
from ...pipeline.errors import StageError
from ...pipeline.quantization import Quantization, capture
from ..judgement import SAMPLES, Judgement, judged, sampled, told
from ..recovery import calibrated_anew
from ..stage import Context
from .placement import layer_paths, placed


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MixedPrecision(_Frozen):
    """When a layer goes back to float."""

    loss_rise: Annotated[float, Field(gt=0)] | None = None
    """The most sensitive layers go back, one after another, until the calibrated model's mean loss on training samples
    is at most this much above the float model's."""
    faster: bool = False
    """Layers go back whose return alone makes the whole int8 engine faster beyond noise: one engine is built and timed
    for each layer."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if self.loss_rise is None and not self.faster:
            raise ValueError("give `loss_rise: 0.02` or `faster: true`, or both")
        return self


class LayerSensitivity(_Frozen):
    """One layer back in float, and every other one in int8."""

    layer: str
    loss_in_int8: float
    """What its int8 form adds to the mean loss of the int8 model."""
    metric_without: float
    """The task's metric on training samples with this layer in float."""


class TimedReturn(_Frozen):
    """The int8 engine with one layer in float beside the one with all layers in int8."""

    layer: str
    engine: str
    ratio: float
    """The p50 with all in int8 over that with this layer in float."""
    verdict: str


class Returned(_Frozen):
    """A layer that goes back to float."""

    layer: str
    reason: str


class Decision(_Frozen):
    """What was measured, and what follows."""

    returned: tuple[Returned, ...]
    sensitivity: tuple[LayerSensitivity, ...] = ()
    engines: tuple[TimedReturn, ...] = ()


def mixed(artifact: Artifact, settings: MixedPrecision, context: Context) -> Artifact:
    """The artifact, which is to be calibrated, with more layers in float; measured once, also where a step resumes.

    Raises StageError where no layer would be left in int8.
    """
    found = context.decided("mixed-precision", lambda: _decide(artifact, settings, context).model_dump())
    decision = TypeAdapter(Decision).validate_python(found)
    for name, rows in (("sensitivity", decision.sensitivity), ("engines timed", decision.engines)):
        if rows:
            context.journal.fact(name, told(rows, context))
    context.journal.fact("back in float", [row.model_dump() for row in decision.returned])
    for row in decision.returned:
        context.progress.say(f"{context.step}: {row.layer} goes back to float: {row.reason}")
    artifact = _with_floats(artifact, (row.layer for row in decision.returned))
    if not placed(capture(artifact.model, context.data.example()), _quantization(artifact)).weights:
        raise StageError(
            f"{context.step}: no layer would be left in {_quantization(artifact).scheme}. Mend: a larger "
            "`mixed_precision.loss_rise`, training under the quantizers instead (`recover.epochs`), or no `quantize` "
            "stage"
        )
    return artifact


def _decide(artifact: Artifact, settings: MixedPrecision, context: Context) -> Decision:
    layers = layer_paths(capture(artifact.model, context.data.example()), _quantization(artifact))
    engines: tuple[TimedReturn, ...] = ()
    returned: tuple[Returned, ...] = ()
    if settings.faster:
        engines, returned = _by_latency(artifact, layers, context)
    sensitivity: tuple[LayerSensitivity, ...] = ()
    if settings.loss_rise is not None:
        faster = _with_floats(artifact, (row.layer for row in returned))
        left = [layer for layer in layers if layer not in _quantization(faster).float_layers]
        sensitivity, sensitive = _by_loss(faster, left, settings.loss_rise, context)
        returned = (*returned, *sensitive)
    return Decision(returned=returned, sensitivity=sensitivity, engines=engines)


def _by_latency(
    artifact: Artifact, layers: Iterable[str], context: Context
) -> tuple[tuple[TimedReturn, ...], tuple[Returned, ...]]:
    context.progress.say(f"{context.step}: builds and times an engine for each layer in float ({context.bench.label})")
    engines: list[TimedReturn] = []
    with context.bench.beside(calibrated_anew(artifact, context)) as beside:

        def timed(floats: Iterable[str]) -> Beside:
            return beside(calibrated_anew(_with_floats(artifact, floats), context))

        for layer in layers:
            found = timed((layer,))
            engines.append(TimedReturn(layer=layer, engine=str(found), ratio=found.ratio, verdict=found.verdict))
        faster = [each for each in engines if each.verdict == "faster"]
        # Two neighbours may each pay only while the other one stays: what goes back is what pays together.
        if len(faster) > 1 and timed(each.layer for each in faster).verdict != "faster":
            faster = [max(faster, key=lambda each: each.ratio)]
    return tuple(engines), tuple(Returned(layer=each.layer, reason=f"faster so: {each.engine}") for each in faster)


def _by_loss(
    artifact: Artifact, layers: list[str], limit: float, context: Context
) -> tuple[tuple[LayerSensitivity, ...], tuple[Returned, ...]]:
    shown = list(sampled(context, SAMPLES, context.data.batch_size, "sensitivity of layers"))
    whole = judged(artifact.model.to(context.device).eval(), shown, context).loss
    artifact.model.to("cpu")
    in_int8 = _with_layers_in_float(artifact, context, shown)
    all_int8 = in_int8(()).loss
    alone = {layer: in_int8((layer,)) for layer in layers}
    sensitivity = [
        LayerSensitivity(layer=layer, loss_in_int8=all_int8 - found.loss, metric_without=found.metric)
        for layer, found in alone.items()
    ]

    def rise_with(floats: Collection[str]) -> float:
        return in_int8(floats).loss - whole

    return tuple(sensitivity), tuple(_returned(artifact, sensitivity, all_int8 - whole, limit, rise_with, context))


def _returned(
    artifact: Artifact,
    sensitivity: Sequence[LayerSensitivity],
    rise: float,
    limit: float,
    rise_with: Callable[[Collection[str]], float],
    context: Context,
) -> Iterator[Returned]:
    """Layers, the one whose return helps most first, until the loss has risen by no more than `limit`.

    A tensor is rounded until all layers are in float that want it rounded, so what one layer's return is worth changes
    with its neighbours': theirs is measured anew behind each return.
    """
    neighbours = _neighbours(artifact, [each.layer for each in sensitivity], context)
    gains = {each.layer: each.loss_in_int8 for each in sensitivity}
    floats: list[str] = []
    while rise > limit and gains:
        layer = max(gains, key=lambda each: gains[each])
        gain = gains.pop(layer)
        reason = f"the loss is {rise:.4f} above the float model's, {gain:.4f} of it by this layer"
        yield Returned(layer=layer, reason=reason)
        floats.append(layer)
        rise = rise_with(floats)
        for other in neighbours[layer] & gains.keys():
            gains[other] = rise - rise_with([*floats, other])


def _neighbours(artifact: Artifact, layers: Sequence[str], context: Context) -> dict[str, set[str]]:
    """The layers that want a tensor rounded which each layer wants rounded, too."""
    graph, asked = capture(artifact.model, context.data.example()), _quantization(artifact)
    wanted = {
        layer: _quantizers(graph, _leaving(asked, [other for other in layers if other != layer])) for layer in layers
    }
    return {layer: {other for other in layers if other != layer and wanted[layer] & wanted[other]} for layer in layers}


def _with_layers_in_float(
    artifact: Artifact, context: Context, shown: list[Batch]
) -> Callable[[Collection[str]], Judgement]:
    """Judges the calibrated model with some layers in float: the quantizers that are there for them alone are off."""
    from ...pipeline.fake_quantization import fake_quantized
    from .calibration import calibrated

    example, asked = context.data.example(), _quantization(artifact)
    student = fake_quantized(artifact.model, calibrated(artifact.model, asked, context), example)
    student.to(context.device)
    graph = capture(artifact.model, example)
    all_names = _quantizers(graph, asked)

    def in_float(layers: Collection[str]) -> Judgement:
        silent = all_names - _quantizers(graph, _leaving(asked, layers))
        with student.rounding(on=False, names=silent):
            return judged(student, shown, context)

    return in_float


def _quantizers(graph: fx.GraphModule, asked: Quantization) -> set[str]:
    placement = placed(graph, asked)
    return {*placement.weights, *placement.activations}


def _with_floats(artifact: Artifact, layers: Iterable[str]) -> Artifact:
    return replace(artifact, quantization=_leaving(_quantization(artifact), layers))


def _leaving(quantization: Quantization, layers: Iterable[str]) -> Quantization:
    return quantization.model_copy(update={"float_layers": (*quantization.float_layers, *layers)})


def _quantization(artifact: Artifact) -> Quantization:
    assert artifact.quantization is not None
    return artifact.quantization
