"""Asking the engine, layer by layer, whether another form of a layer pays: fewer operations often take longer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from ..pipeline.bench import Beside
from .stage import Context


@dataclass(frozen=True)
class Form:
    """Another form of one layer."""

    path: str
    settings: str
    """What tells it from other forms of an equal layer."""
    make: Callable[[], nn.Module]


def beside_layers(model: nn.Module, forms: Sequence[Form], what: str, context: Context) -> dict[str, Beside]:
    """How each form's engine does beside that of the layer it would replace, by path; `what` names such forms.

    Each layer is an engine by itself, in float, on inputs of the shape it gets in the model; layers of equal settings,
    shape and form are timed once. A batch norm or ReLU behind the layer fuses into either form alike.
    """
    inputs = _inputs_of(model, [form.path for form in forms], context)
    timed: dict[str, Beside] = {}
    found: dict[str, Beside] = {}
    for form in forms:
        layer = model.get_submodule(form.path)
        key = f"{layer!r} {tuple(inputs[form.path].shape)} {form.settings}"
        if key not in timed:
            timed[key] = _timed(len(timed), layer, form, inputs[form.path], what, context)
        found[form.path] = timed[key]
    return found


def _timed(number: int, layer: nn.Module, form: Form, inputs: Tensor, what: str, context: Context) -> Beside:
    def measure() -> JsonValue:
        context.progress.say(f"{context.step}: times {form.path} against its {what}")
        return context.bench.layer_beside(layer, form.make(), inputs).model_dump()

    return Beside.model_validate(context.decided(f"layer-{number}", measure))


@torch.no_grad()
def _inputs_of(model: nn.Module, paths: Sequence[str], context: Context) -> dict[str, Tensor]:
    """What each layer read when the model ran on one sample."""
    seen: dict[str, Tensor] = {}

    def remember(path: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[path] = inputs[0].detach()

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(remember(path)) for path in paths]
    try:
        model(*context.data.example(1).values())
    finally:
        for hook in hooks:
            hook.remove()
    return seen
