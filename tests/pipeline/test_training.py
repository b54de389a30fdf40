"""Facts about the training loop."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from interruption import StoppingProgress
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.data import Batch
from potstill.pipeline.errors import TrainingError
from potstill.pipeline.progress import Silent
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, Objective, Schedule, TaskObjective, fit, gradient_shares, metric_of
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


class TestSchedule:
    def test_rate_rises_to_the_peak_and_falls_towards_zero(self) -> None:
        schedule = Schedule(epochs=1, learning_rate=0.4, warmup=0.25)
        rates = [schedule.rate(step, 100) for step in range(100)]
        assert max(rates) == rates[24] == pytest.approx(0.4)
        assert rates[0] == pytest.approx(0.4 / 25)
        assert 0 < rates[-1] < 0.001
        assert rates[24:] == sorted(rates[24:], reverse=True)

    def test_rate_of_a_training_of_one_step_is_positive(self) -> None:
        assert Schedule(epochs=1).rate(0, 1) > 0

    def test_adamw_has_one_rate(self) -> None:
        with pytest.raises(ValueError, match="`norm_bias_rate` is for SGD"):
            Schedule(epochs=1, optimizer="adamw", learning_rate=0.001, norm_bias_rate=64)


class NanAtStep(Objective):
    """The task's loss, made NaN at one step."""

    def __init__(self, step: int, inner: TaskObjective) -> None:
        super().__init__()
        self.step = step
        self.inner = inner

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        self.step -= 1
        factor = float("nan") if self.step < 0 else 1.0
        return {"task": factor * self.inner.terms(model, batch, moment)["task"]}


class TestGradientShares:
    def test_are_the_norms_of_the_terms_gradients_over_their_sum(self) -> None:
        model = nn.Linear(2, 1, bias=False)
        outputs = model(torch.tensor([[3.0, 4.0]]))
        shares = gradient_shares({"a": outputs.sum(), "b": 3 * outputs.sum(), "off": torch.zeros(())}, model)
        assert shares == pytest.approx({"a": 0.25, "b": 0.75, "off": 0.0})

    def test_of_one_term_are_not_told(self) -> None:
        model = nn.Linear(2, 1)
        assert gradient_shares({"task": model(torch.ones(1, 2)).sum()}, model) is None


class TestFit:
    def test_training_learns(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        model = deepcopy(new_artifact().model)
        fit(model, TaskObjective(context), Schedule(epochs=4), context)
        assert metric_of(model, context.data.test, context) > 0.9

    def test_the_same_seed_gives_the_same_weights_bit_for_bit(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        models: list[nn.Module] = []
        for step in ("one", "two"):
            context = new_context(step=step)
            models.append(deepcopy(new_artifact().model))
            fit(models[-1], TaskObjective(context), Schedule(epochs=1), context)
        assert same_weights(*models)

    def test_another_seed_gives_other_weights(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        models: list[nn.Module] = []
        for seed in (1, 2):
            context = new_context(step=f"seed-{seed}", seed=seed)
            models.append(deepcopy(new_artifact().model))
            fit(models[-1], TaskObjective(context), Schedule(epochs=1), context)
        assert not same_weights(*models)

    @pytest.mark.parametrize("interrupted_at", [1, 4, 5, 8])
    def test_an_interrupted_training_ends_with_the_undisturbed_weights_and_curve(
        self,
        interrupted_at: int,
        new_artifact: NewArtifact,
        new_context: NewContext,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        schedule = Schedule(epochs=2)
        undisturbed, resumed = deepcopy(new_artifact().model), deepcopy(new_artifact().model)
        calm = new_context(step="calm")
        fit(undisturbed, TaskObjective(calm), schedule, calm)

        # A constant of the loop: with none of it between checkpoints, each step leaves one.
        monkeypatch.setattr("potstill.pipeline.training.CHECKPOINT_SECONDS", 0.0)
        stormy = new_context(step="stormy")
        object.__setattr__(stormy, "progress", StoppingProgress(interrupted_at))
        with pytest.raises(KeyboardInterrupt):
            fit(resumed, TaskObjective(stormy), schedule, stormy)
        stormy.journal.curve.clear()
        object.__setattr__(stormy, "progress", Silent())
        fresh = deepcopy(new_artifact().model)
        fit(fresh, TaskObjective(stormy), schedule, stormy)
        assert same_weights(undisturbed, fresh)
        assert stormy.journal.curve == calm.journal.curve

    def test_the_curve_has_a_point_for_every_epoch_with_the_validation_accuracy(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context()
        fit(deepcopy(new_artifact().model), TaskObjective(context), Schedule(epochs=3), context)
        assert [point.epoch for point in context.journal.curve] == [1.0, 2.0, 3.0]
        assert all(point.validation is not None for point in context.journal.curve)

    def test_trainings_of_one_step_share_a_curve(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context()
        for name in ("generation-1", "generation-2"):
            fit(deepcopy(new_artifact().model), TaskObjective(context), Schedule(epochs=2), context, name=name)
        assert [point.epoch for point in context.journal.curve] == [1.0, 2.0, 3.0, 4.0]

    def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_good_checkpoint(
        self, new_artifact: NewArtifact, new_context: NewContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("potstill.pipeline.training.CHECKPOINT_SECONDS", 0.0)
        context = new_context()
        objective = NanAtStep(7, TaskObjective(context))
        with pytest.raises(TrainingError, match=r"not finite at step 8 of 10 \(epoch 2\).*learning_rate"):
            fit(deepcopy(new_artifact().model), objective, Schedule(epochs=2), context)
        kept = context.checkpoints / "train.safetensors"
        assert kept.exists()
        from safetensors.torch import load_file

        assert all(torch.isfinite(tensor).all() for tensor in load_file(kept).values())

    def test_biases_of_norms_learn_as_many_times_as_fast_as_asked(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        before = new_artifact().model.state_dict()
        moved: list[dict[str, Tensor]] = []
        for factor in (1.0, 8.0):
            context = new_context(step=f"{factor:g}-fold")
            whole = replace(context.data, batch_size=len(context.data.train))
            context = replace(context, data=whole)
            model = deepcopy(new_artifact().model)
            fit(model, TaskObjective(context), Schedule(epochs=1, norm_bias_rate=factor), context)
            moved.append({name: tensor - before[name] for name, tensor in model.state_dict().items()})
        slow, fast = moved
        for name in ("bn1.bias", "layer1.0.bn2.bias"):
            assert torch.allclose(fast[name], 8 * slow[name], rtol=1e-3)
        for name in ("bn1.weight", "linear.bias", "conv1.weight"):
            assert torch.equal(fast[name], slow[name])

    def test_a_network_without_norms_has_no_biases_of_norms(self, new_context: NewContext) -> None:
        context = new_context()
        model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4))
        with pytest.raises(TrainingError, match="no norm layers"):
            fit(model, TaskObjective(context), Schedule(epochs=1, norm_bias_rate=64), context)

    def test_no_epoch_leaves_the_weights(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact()
        model = deepcopy(artifact.model)
        context = new_context()
        fit(model, TaskObjective(context), Schedule(epochs=0), context)
        assert same_weights(model, artifact.model)


class Waits(TorchDispatchMode):
    """Counts what makes a host wait for its device: numbers read from it, and shapes that follow from values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


class Waiting(Objective):
    """The objective, and how often each step of it waited so far."""

    def __init__(self, inner: Objective, waits: Waits) -> None:
        super().__init__()
        self.inner = inner
        self.waits = waits
        self.seen: list[int] = []

    def terms(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        self.seen.append(self.waits.count)
        return self.inner.terms(model, batch, moment)


class TestAStep:
    @pytest.mark.parametrize("knowledge", [(), ("kd",), ("crd", "rkd", "at"), ("ps_kd",), ("dkd", "hint"), ("dml",)])
    def test_never_waits_for_the_device(
        self, knowledge: tuple[str, ...], new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact(1)))
        student = new_artifact()
        settings = Distillation.model_validate({"knowledge": knowledge})
        with Waits() as waits:
            objective = Waiting(DistillationObjective(settings, student.model, student.blueprint, context), waits)
            fit(student.model, objective, Schedule(epochs=2), context)
        by_step = [after - before for before, after in pairwise(objective.seen)]
        # The first step of an epoch looks at the gradients of the terms, and the last one at the losses.
        within = [count for step, count in enumerate(by_step) if step % 5 in (1, 2, 3)]
        assert len(within) == 6
        assert sum(within) == 0
        assert sum(by_step) > 0
