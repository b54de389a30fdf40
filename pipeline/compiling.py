"""Running a network that is trained through `torch.compile`, where a trial shows that it pays."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .progress import duration_text

Run = Callable[..., Tensor]

ROUNDS = 6
"""In how many turns a pass by `torch.compile` is timed beside one without."""

WORTHWHILE = 0.97
"""The share of a pass's time that a compiled one may take at most."""

SHORTEST_SECONDS = 120.0
"""Trainings that end within this time do not wait for a compiler that may need as long."""


class Compiled:
    """Which networks run compiled, and which were seen to be read inside, which compiled ones cannot be."""

    def __init__(self) -> None:
        self._runs: dict[nn.Module, Run] = {}
        self._read_inside: set[nn.Module] = set()

    def of(self, model: nn.Module, *, taps: bool) -> Run:
        """What to call for the model's outputs: itself where taps are read, or where it is evaluated."""
        if taps:
            self._read_inside.add(model)
        return model if taps or not model.training else self._runs.get(model, model)

    def compile(self, model: nn.Module) -> None:
        """Take it that compiling pays."""
        self._runs[model] = _compiled(model)

    def __contains__(self, model: nn.Module) -> bool:
        """Whether it runs compiled."""
        return model in self._runs

    def try_on(self, model: nn.Module, inputs: Mapping[str, Tensor], num_passes: int) -> str:
        """Compile the model, which was trained for a step, if `num_passes` more like that of `inputs` pay for it.

        Its weights and buffers stay what they are. Returns what was found and decided, for a person.
        """
        if model in self._read_inside:
            return "not compiled: what it learns is read inside of the network, where no tap reaches then"
        eager = _Passes(model, model, inputs)
        eager.seconds()
        expected = eager.seconds() * num_passes
        if expected < SHORTEST_SECONDS:
            words = f"not compiled: its passes take {duration_text(expected)} without"
            return f"{words}, which compiling could not shorten by as much as it takes"
        began = time.monotonic()
        try:
            fast = _Passes(model, _compiled(model), inputs)
            fast.seconds()
        except Exception as error:
            # Whatever a compiler raises, the training goes on without it, and says so.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"not compiled: torch.compile fails on this network: {reason}"
        compiling = time.monotonic() - began
        ratios = [fast.seconds() / eager.seconds() for _ in range(ROUNDS)]
        ratio = statistics.median(ratios)
        found = (
            f"a compiled pass takes {ratio:.2f} of the time of one without ({min(ratios):.2f} to {max(ratios):.2f} in "
            f"{ROUNDS} turns), after {duration_text(compiling)} of compiling"
        )
        if ratio > WORTHWHILE:
            return f"not compiled: {found}"
        self._runs[model] = fast.run
        return f"compiled: {found}; it saves {duration_text(expected * (1 - ratio))}"


@dataclass(frozen=True)
class _Passes:
    """Forward and backward passes of a network that leave it as it was."""

    model: nn.Module
    run: Run
    inputs: Mapping[str, Tensor]

    def seconds(self) -> float:
        """Of one pass."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        device = next(iter(self.inputs.values())).device
        try:
            began = time.monotonic()
            output = self.run(*self.inputs.values())
            output.float().square().mean().backward()  # pyright: ignore[reportUnknownMemberType]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.monotonic() - began
        finally:
            self.model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(buffers[name])


def _compiled(model: nn.Module) -> Run:
    return cast(Any, torch).compile(model)
