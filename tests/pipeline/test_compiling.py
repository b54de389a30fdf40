"""Facts about trainings through `torch.compile`."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from interruption import StoppingProgress
from torch import Tensor, nn

from potstill.pipeline import compiling
from potstill.pipeline.data import Batch, Dataset
from potstill.pipeline.training import Moment, Objective, Schedule, TaskObjective, TrainingContext, fit
from tests.support.contexts import context_on
from tests.support.hearing import Hearing

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning")
"""What torch.compile imports uses it."""

SCHEDULE = Schedule(epochs=2)


class ReadsInside(Objective):
    """The task's loss, and a small one of a tensor inside of the network."""

    def __init__(self, context: TrainingContext, tap: str) -> None:
        super().__init__()
        self._context = context
        self._tap = tap

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        outputs = self._context.outputs(model, batch.inputs, [self._tap])
        task = self._context.task.loss(outputs.logits, batch.target)
        return {"task": task, "inside": 1e-3 * outputs.maps[self._tap].square().mean()}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


@pytest.fixture
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes compiling pay for however short a training, and however little it gains."""
    monkeypatch.setattr(compiling, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(compiling, "WORTHWHILE", float("inf"))


def trained(data: Dataset, folder: Path, **settings: Any) -> tuple[nn.Module, list[str]]:
    """A small network after its training, and what was said."""
    progress = Hearing()
    context = context_on(data, folder, **({"progress": progress, "compile": True} | settings))
    model = small()
    fit(model, TaskObjective(context), SCHEDULE, context)
    return model, progress.said


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    theirs = other.state_dict()
    return max(float((tensor - theirs[name]).abs().max()) for name, tensor in one.state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("worthwhile")
def test_a_compiled_training_ends_with_the_weights_of_one_without(data: Dataset, tmp_path: Path) -> None:
    plain, _ = trained(data, tmp_path / "plain", compile=False)
    compiled, said = trained(data, tmp_path / "compiled")
    assert said[0].startswith("train: compiled: a compiled pass takes ")
    assert 0 < largest_difference(plain, compiled) < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("worthwhile")
def test_a_resumed_training_goes_on_compiled_without_another_trial(data: Dataset, tmp_path: Path) -> None:
    whole, _ = trained(data, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.pipeline.training.CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            trained(data, tmp_path / "stopped", progress=StoppingProgress(after=4))
    resumed, said = trained(data, tmp_path / "stopped")
    assert said == ["train: continues at step 5 of 10"]
    assert largest_difference(whole, resumed) < 1e-4


def test_a_training_too_short_to_pay_is_not_compiled(data: Dataset, tmp_path: Path) -> None:
    plain, _ = trained(data, tmp_path / "plain", compile=False)
    model, said = trained(data, tmp_path / "asked")
    assert said[0].startswith("train: not compiled: its passes take ")
    assert largest_difference(plain, model) == 0


@pytest.mark.usefixtures("worthwhile")
def test_a_compiler_that_fails_is_told_and_the_training_goes_on(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*inputs: Tensor) -> Tensor:
        del inputs
        raise RuntimeError("no compiler here")

    def finds_no_compiler(model: nn.Module) -> Callable[..., Tensor]:
        del model
        return fails

    plain, _ = trained(data, tmp_path / "plain", compile=False)
    monkeypatch.setattr(torch, "compile", finds_no_compiler)
    model, said = trained(data, tmp_path / "asked")
    assert said == ["train: not compiled: torch.compile fails on this network: no compiler here"]
    assert largest_difference(plain, model) == 0


@pytest.mark.usefixtures("worthwhile")
def test_a_network_that_is_read_inside_is_not_compiled(data: Dataset, tmp_path: Path) -> None:
    progress = Hearing()
    context = context_on(data, tmp_path / "inside", progress=progress, compile=True)
    model = small()
    fit(model, ReadsInside(context, "1"), SCHEDULE, context)
    assert progress.said[0].startswith("train: not compiled: what it learns is read inside")


@pytest.mark.usefixtures("worthwhile")
def test_a_trial_leaves_weights_and_buffers(data: Dataset, tmp_path: Path) -> None:
    context = context_on(data, tmp_path, compile=True)
    model = small().train()
    before = deepcopy(model)
    batch = context.data.train.batch(torch.arange(32))
    context.compiled.try_on(model, batch.inputs, 10)
    assert largest_difference(before, model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
