"""Residual blocks that can be taken out whole, and the order in which they cost least."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ...pipeline.blueprint import Bypass
from ...pipeline.cost import macs
from ...pipeline.data import Batch
from ..judgement import SAMPLES, judged, sampled
from ..stage import Context
from .proof import demand_equal


class Drop(BaseModel):
    """One block taken out after those before it in the list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str
    loss_rise: float
    """The mean loss on training samples above that of the whole model, nothing trained in between."""
    metric: float
    """The task's metric on the samples."""
    macs_left: float
    """The share of the model's multiply-accumulates that remain."""


@torch.no_grad()
def residual_blocks(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
    """The innermost modules that hand their input on unchanged once all their parameters are zero, in model order.

    That is what makes a block residual, whatever its code: what it computes is added to what came in. Blocks that run
    more than once, or that take anything but one tensor, are left out.
    """
    model = deepcopy(model).eval()
    found: list[str] = []
    for path, entered in _entered_once(model, inputs).items():
        silent = _silenced(model.get_submodule(path))
        output = silent(entered)
        if isinstance(output, Tensor) and output.shape == entered.shape and torch.equal(output, entered):
            found.append(path)
    return [path for path in found if not any(other.startswith(f"{path}.") for other in found)]


def without(model: nn.Module, blocks: Iterable[str]) -> nn.Module:
    """A copy without these blocks."""
    shallower = deepcopy(model)
    Bypass(blocks=tuple(blocks)).apply(shallower)
    return shallower


def prove_without(model: nn.Module, blocks: Sequence[str], inputs: Mapping[str, Tensor]) -> None:
    """Demand that the model without the blocks computes what it does with their parameters zero; else CutError."""
    silent = deepcopy(model)
    for path in blocks:
        silent.set_submodule(path, _silenced(silent.get_submodule(path)))
    demand_equal(
        silent,
        without(model, blocks),
        inputs,
        "the original with the blocks' branches silenced",
        "code reaches into them",
    )


def drops(model: nn.Module, candidates: Sequence[str], context: Context) -> list[Drop]:
    """All blocks in the order they go: next is the one whose loss costs least for each multiply-accumulate it saves.

    Every block that is left is tried before each choice, since blocks stand in for one another.
    """
    inputs = context.data.example()
    samples = list(sampled(context, SAMPLES, context.data.batch_size, "sensitivity of blocks"))
    whole = judged(deepcopy(model).to(context.device).eval(), samples, context).loss
    uncut = macs(model, inputs)
    gone: list[str] = []
    found: list[Drop] = []
    while len(gone) < len(candidates):
        tried = [
            _tried(model, gone, block, whole, uncut, samples, context) for block in candidates if block not in gone
        ]
        before = found[-1] if found else None
        best = min(tried, key=lambda drop: _price(drop, before))
        gone.append(best.block)
        found.append(best)
    return found


def _tried(
    model: nn.Module, gone: list[str], block: str, whole: float, uncut: int, samples: list[Batch], context: Context
) -> Drop:
    shallower = without(model, [*gone, block])
    left = macs(shallower, context.data.example()) / uncut
    judgement = judged(shallower.to(context.device).eval(), samples, context)
    return Drop(block=block, loss_rise=judgement.loss - whole, metric=judgement.metric, macs_left=left)


def _price(drop: Drop, before: Drop | None) -> float:
    rise, left = (0.0, 1.0) if before is None else (before.loss_rise, before.macs_left)
    saved = max(left - drop.macs_left, 1e-9)
    # A block whose absence helps is the better the more it helps; dividing by what it saves would turn that round.
    return (drop.loss_rise - rise) / saved if drop.loss_rise > rise else drop.loss_rise - rise


def _silenced(block: nn.Module) -> nn.Module:
    silent = deepcopy(block).eval()
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    return silent


def _entered_once(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What entered each module that has parameters and parts, ran once, and took one tensor."""
    entered: dict[str, list[tuple[Any, ...]]] = {}

    def remember(path: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            entered.setdefault(path, []).append((*arguments, *keywords.values()))

        return hook

    hooks = [module.register_forward_pre_hook(remember(path), with_kwargs=True) for path, module in _with_parts(model)]
    try:
        model(*inputs.values())
    finally:
        for hook in hooks:
            hook.remove()
    return {
        path: calls[0][0]
        for path, calls in entered.items()
        if len(calls) == 1 and len(calls[0]) == 1 and isinstance(calls[0][0], Tensor)
    }


def _with_parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in cast(Iterable[tuple[str, nn.Module]], model.named_modules()):
        if path and any(True for _ in module.children()) and any(True for _ in module.parameters()):
            yield path, module
