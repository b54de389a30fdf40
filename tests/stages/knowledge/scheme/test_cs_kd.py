"""Facts about learning from one's own output for another sample of the class."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.knowledge.scheme.cs_kd import Partners
from potstill.stages.stage import Context

from ....conftest import Bars

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


class TestPartners:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 100))
    @settings(max_examples=50, deadline=None)
    def test_are_others_of_the_class_wherever_there_are_any(self, labels: list[int], seed: int) -> None:
        torch.manual_seed(seed)
        index = torch.randint(0, len(labels), (40,))
        drawn = Partners(torch.tensor(labels)).drawn(index).tolist()
        for mine, other in zip(index.tolist(), drawn, strict=True):
            assert labels[other] == labels[mine]
            assert (other != mine) == (labels.count(labels[mine]) > 1)

    def test_are_all_drawn_about_equally_often(self) -> None:
        torch.manual_seed(0)
        target = torch.tensor([1, 0, 1, 1, 0, 1, 1])
        drawn = Partners(target).drawn(torch.full((4000,), 3))
        counts = torch.bincount(drawn, minlength=len(target)).tolist()
        assert [count > 0 for count in counts] == [True, False, True, False, False, True, True]
        assert all(count == pytest.approx(1000, rel=0.15) for count in counts if count)

    def test_depend_on_torchs_generator_alone(self) -> None:
        partners, index = Partners(torch.arange(40) % 4), torch.arange(40)
        draws: list[Tensor] = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            draws.append(partners.drawn(index))
        assert torch.equal(draws[0], draws[2])
        assert not torch.equal(draws[0], draws[1])


def softened(row: Tensor, temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in row.tolist()]
    return [each / sum(exponentials) for each in exponentials]


class TestLoss:
    @pytest.fixture
    def pairs(self, new_context: NewContext) -> Context:
        """A context whose training split holds two samples of each class, so that every partner is known."""
        return replace(new_context(), data=Bars(samples=8, batch_size=8).load(Path()))

    def objective(self, student: Artifact, context: Context) -> DistillationObjective:
        given = Distillation.model_validate({"knowledge": [{"cs_kd": {"temperature": 4}}]})
        return DistillationObjective(given, student.model, student.blueprint, context)

    def test_is_the_softened_divergence_from_the_partners_output(
        self, pairs: Context, new_artifact: NewArtifact
    ) -> None:
        student = new_artifact()
        index = torch.tensor([0, 5, 2, 3])
        batch, partners = (pairs.data.train.batch(each) for each in (index, (index + 4) % 8))
        assert torch.equal(batch.target, partners.target)
        model = deepcopy(student.model).train()
        mine, theirs = (model(*each.inputs.values()).detach().double() for each in (batch, partners))
        losses: list[float] = []
        for z, other in zip(mine, theirs, strict=True):
            both = zip(softened(other, 4.0), softened(z, 4.0), strict=True)
            losses.append(16 * sum(p * (math.log(p) - math.log(q)) for p, q in both))
        found = self.objective(student, pairs).terms(student.model.train(), batch, Moment(0, 10, 0))
        assert found["cs_kd"].item() == pytest.approx(sum(losses) / 4, rel=1e-4)
        assert set(found) == {"task", "cs_kd"}

    def test_moves_the_network_by_the_sample_and_not_by_its_partner(
        self, pairs: Context, new_artifact: NewArtifact
    ) -> None:
        """KL's gradient for the logits is T·(p - q); through the partner there would be another one."""
        student = new_artifact()
        batch = pairs.data.train.batch(torch.arange(4))
        seen: list[Tensor] = []

        def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
            seen.append(output)
            if output.requires_grad:
                output.retain_grad()

        student.model.linear.register_forward_hook(keep)  # type: ignore[union-attr]
        terms = self.objective(student, pairs).terms(student.model.train(), batch, Moment(0, 10, 0))
        terms["cs_kd"].backward()
        mine, theirs = seen[-2:]
        assert not theirs.requires_grad
        expected = 4.0 * ((mine / 4).softmax(1) - (theirs / 4).softmax(1)) / len(batch.target)
        torch.testing.assert_close(mine.grad, expected.detach())
