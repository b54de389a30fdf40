"""Facts about learning from one's own outputs of an epoch ago."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients, labels
from pydantic import ValidationError
from torch import Tensor

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.knowledge.scheme.ps_kd import progressive
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def probabilities(row: list[float]) -> list[float]:
    exponentials = [math.exp(z) for z in row]
    return [each / sum(exponentials) for each in exponentials]


def cross_entropy_with_mixture(logits: list[float], past: list[float], label: int, share: float) -> float:
    """H((1 - α)·y + α·q, p), class by class."""
    predicted = probabilities(logits)
    loss = 0.0
    for number, (p, q) in enumerate(zip(predicted, past, strict=True)):
        aim = (1 - share) * (number == label) + share * q
        loss -= aim * math.log(p)
    return loss


class TestProgressive:
    @given(seed=st.integers(0, 1000), share=st.floats(0, 1))
    @settings(max_examples=25, deadline=None)
    def test_makes_the_labels_loss_that_of_the_mixture(self, seed: int, share: float) -> None:
        logits, past, target = draws(5, 7, seed=seed), draws(5, 7, seed=seed + 1).softmax(1), labels(5, 7, seed)
        found = progressive(logits, past, target, share)
        for z, q, label, value in zip(logits.tolist(), past.tolist(), target.tolist(), found.tolist(), strict=True):
            plain = cross_entropy_with_mixture(z, q, label, 0.0)
            assert plain + value == pytest.approx(cross_entropy_with_mixture(z, q, label, share), rel=1e-9)

    def test_is_nothing_while_the_past_is_the_label(self) -> None:
        logits, target = draws(5, 7), labels(5, 7)
        past = torch.nn.functional.one_hot(target, 7).double()
        assert progressive(logits, past, target, 0.8).abs().max().item() == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_finite_with_its_gradient(self, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](4, 7)
        past, target = draws(len(student), 7, seed=1).float().softmax(1), labels(len(student), 7)

        def loss(leaf: Tensor) -> Tensor:
            return progressive(leaf, past, target, 0.8)

        assert finite_gradients(loss, student, dtype)


class TestMemory:
    def test_each_epochs_target_is_mixed_from_the_epoch_before(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        """Three epochs of 5 steps over changing orders, against a dictionary kept by hand."""
        context, student = new_context(), new_artifact()
        given = Distillation.model_validate({"knowledge": ["ps_kd"], "task_weight": 1})
        objective = DistillationObjective(given, student.model, student.blueprint, context)
        model = student.model.train()
        known: dict[int, list[float]] = {}
        for step in range(15):
            epoch, position = divmod(step, 5)
            order = torch.randperm(160, generator=torch.Generator().manual_seed(epoch))
            index = order[position * 32 : (position + 1) * 32]
            batch = context.data.train.batch(index)
            logits = model(*batch.inputs.values()).detach().double().tolist()
            terms = objective.terms(model, batch, Moment(step, 15, epoch))
            expected: list[float] = []
            for sample, label, row in zip(index.tolist(), batch.target.tolist(), logits, strict=True):
                past = known.get(sample, [float(number == label) for number in range(4)])
                expected.append(cross_entropy_with_mixture(row, past, label, 0.8 * (epoch + 1) / 3))
                known[sample] = probabilities(row)
            assert (terms["task"] + terms["ps_kd"]).item() == pytest.approx(sum(expected) / 32, rel=1e-4)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        assert len(known) == 160

    def test_asks_the_labels_for_no_more_weight_than_they_have(self) -> None:
        with pytest.raises(ValidationError, match=r"`ps_kd` moves up to 0\.8 .*`task_weight` is 0\.5; .*: 1`"):
            Distillation.model_validate({"knowledge": ["ps_kd"], "task_weight": 0.5})
        with pytest.raises(ValidationError, match=r"`task_weight` is 0\.1"):
            Distillation.model_validate({"knowledge": ["kd", "ps_kd"]})
        with pytest.raises(ValidationError, match=r"task_weight: 1\.6"):
            Distillation.model_validate({"knowledge": [{"ps_kd": {"weight": 2}}]})
        Distillation.model_validate({"knowledge": ["kd", {"ps_kd": {"share": 0.1}}]})
