"""Asking the engine, layer by layer, whether factors pay: fewer multiply-accumulates often take longer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from ...pipeline.bench import Beside
from ..stage import Context
from .layers import Plan


def confirmed(model: nn.Module, candidates: Sequence[Plan], context: Context) -> list[Plan]:
    """The plans, those of them kept whole whose factors' engine is not faster than the layer's own beyond noise.

    Each layer is an engine by itself, in float, on inputs of the shape it gets in the model; layers of equal settings,
    shape and ranks are timed once. A batch norm or ReLU behind the layer fuses into either form alike.
    """
    inputs = _inputs_of(model, [plan.path for plan in candidates if plan.pays], context)
    timed: dict[str, Beside] = {}
    found: list[Plan] = []
    for plan in candidates:
        if not plan.pays:
            found.append(plan)
            continue
        layer = model.get_submodule(plan.path)
        key = f"{layer!r} {tuple(inputs[plan.path].shape)} {plan.factors!r}"
        if key not in timed:
            timed[key] = _timed(len(timed), layer, plan, inputs[plan.path], context)
        beside = timed[key]
        reason = None if beside.verdict == "faster" else f"the engine of its factors: {beside}"
        found.append(replace(plan, kept_because=reason, engine=str(beside)))
    return found


def _timed(number: int, layer: nn.Module, plan: Plan, inputs: Tensor, context: Context) -> Beside:
    def measure() -> JsonValue:
        context.progress.say(f"{context.step}: times {plan.path} against its factors")
        return context.bench.layer_beside(layer, plan.sequence(), inputs).model_dump()

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
