"""Facts about peers that learn from each other."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import HARD_CASES, draws, finite_gradients
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.blueprint import Factorize
from potstill.pipeline.errors import StageError
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.knowledge.scheme.dml import mutual
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def probabilities(row: Tensor) -> list[float]:
    exponentials = [math.exp(z - float(row.max())) for z in row.tolist()]
    return [each / sum(exponentials) for each in exponentials]


def divergence(other: Tensor, learner: Tensor) -> list[float]:
    """KL(other ‖ learner) of each sample, class by class."""
    found: list[float] = []
    for z_other, z_learner in zip(other, learner, strict=True):
        pairs = zip(probabilities(z_other), probabilities(z_learner), strict=True)
        found.append(sum(p * (math.log(p) - math.log(q)) for p, q in pairs))
    return found


def cross_entropy(logits: Tensor, target: Tensor) -> float:
    losses = [-math.log(probabilities(row)[label]) for row, label in zip(logits, target.tolist(), strict=True)]
    return sum(losses) / len(losses)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Case:
    """An objective of `dml` alone, one batch, and what its networks say of it."""

    def __init__(self, student: Artifact, context: Context, **how: Any) -> None:
        given = Distillation.model_validate({"knowledge": [{"dml": how}]})
        self.objective = DistillationObjective(given, student.model, student.blueprint, context)
        self.student = student.model.train()
        self.batch = context.data.train.batch(torch.arange(8))
        self.terms = self.objective.terms(self.student, self.batch, Moment(0, 10, 0))
        (networks,) = (
            module
            for module in self.objective.modules()
            if isinstance(module, nn.ModuleList) and type(module[0]) is type(self.student)
        )
        self.peers = list(networks)

    def logits(self, network: nn.Module) -> Tensor:
        return network(*self.batch.inputs.values()).detach().double()


class TestMutual:
    @given(seed=st.integers(0, 1000), count=st.integers(1, 4))
    @settings(max_examples=25, deadline=None)
    def test_is_the_mean_divergence_from_the_others(self, seed: int, count: int) -> None:
        learner, *others = draws(count + 1, 5, 7, seed=seed).unbind()
        expected = [mean(list(each)) for each in zip(*(divergence(other, learner) for other in others), strict=True)]
        assert mutual(learner, others).tolist() == pytest.approx(expected, rel=1e-9)

    def test_is_zero_among_equals_and_moves_the_learner_alone(self) -> None:
        learner, other = draws(4, 7).requires_grad_(), draws(4, 7, seed=1).requires_grad_()
        assert mutual(learner, [learner.detach().clone()]).abs().max().item() == pytest.approx(0, abs=1e-12)
        mutual(learner, [other]).sum().backward()
        assert learner.grad is not None
        assert other.grad is None

    @pytest.mark.parametrize("case", HARD_CASES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_is_finite_with_its_gradient(self, case: str, dtype: torch.dtype) -> None:
        student = HARD_CASES[case](4, 7)
        others = [draws(len(student), 7, seed=seed).float() for seed in (1, 2)]

        def loss(leaf: Tensor) -> Tensor:
            return mutual(leaf, others)

        assert finite_gradients(loss, student, dtype)


class TestPeers:
    def test_student_and_peers_lower_the_losses_of_the_paper(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        case = Case(new_artifact(), new_context(), peers=2)
        student = case.logits(case.student)
        first, second = (case.logits(peer) for peer in case.peers)
        target = case.batch.target
        taught = (mean(divergence(first, student)) + mean(divergence(second, student))) / 2
        own = [
            cross_entropy(one, target) + (mean(divergence(other, one)) + mean(divergence(student, one))) / 2
            for one, other in ((first, second), (second, first))
        ]
        assert case.terms["task"].item() == pytest.approx(cross_entropy(student, target), rel=1e-5)
        assert case.terms["dml"].item() == pytest.approx(taught, rel=1e-4)
        assert case.terms["dml itself"].item() == pytest.approx(sum(own), rel=1e-5)

    def test_each_network_is_moved_by_its_own_loss_alone(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        case = Case(new_artifact(), new_context(), peers=2)
        mine, theirs = list(case.student.parameters()), list(case.objective.parameters())
        for term, moved, left in (("dml", mine, theirs), ("dml itself", theirs, mine)):
            gradients = torch.autograd.grad(case.terms[term], [*moved, *left], retain_graph=True, allow_unused=True)
            assert all(gradient is not None for gradient in gradients[: len(moved)])
            assert all(gradient is None for gradient in gradients[len(moved) :])

    def test_a_student_that_does_not_teach_leaves_a_single_peer_with_the_labels(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        case = Case(new_artifact(), new_context(), teaches="student")
        (peer,) = case.peers
        assert case.terms["dml itself"].item() == pytest.approx(cross_entropy(case.logits(peer), case.batch.target))

    def test_begin_with_weights_of_their_own(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        case = Case(new_artifact(), new_context(), peers=2)
        networks = (case.student, *case.peers)
        assert len({str(network) for network in networks}) == 1
        first = [network.get_parameter("linear.weight") for network in networks]
        assert not any(torch.equal(first[one], first[other]) for one, other in ((0, 1), (0, 2), (1, 2)))

    def test_a_teacher_among_them_is_trained_from_its_weights_while_the_runs_own_stays(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact = new_artifact(seed=1, depth=14, width=16)
        teacher = Teacher(artifact)
        context = new_context(teacher)
        case = Case(new_artifact(), context, peers=["teacher"])
        (peer,) = case.peers
        assert all(torch.equal(a, b) for a, b in zip(peer.parameters(), artifact.model.parameters(), strict=True))
        case.terms["dml itself"].backward()
        assert all(parameter.grad is not None for parameter in peer.parameters())
        assert all(parameter.grad is None for parameter in teacher.model(context).parameters())

    def test_may_be_any_networks(self, new_artifact: NewArtifact, new_context: NewContext, tmp_path: Path) -> None:
        (tmp_path / "nets.py").write_text(
            "from torch import nn\n\n"
            "def flat(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes))\n"
        )
        student, context = new_artifact(), new_context()
        peers = ["nets.py:flat", {"name": "resnet", "depth": 8, "width": 16}]
        given = Distillation.model_validate({"knowledge": [{"dml": {"peers": peers}}]})
        objective = DistillationObjective(given, student.model, student.blueprint, context)
        terms = objective.terms(student.model.train(), context.data.train.batch(torch.arange(4)), Moment(0, 1, 0))
        assert math.isfinite(terms["dml"].item())
        shapes = {tuple(parameter.shape) for parameter in objective.parameters()}
        assert {(4, 256), (4, 64)} <= shapes

    def test_of_a_compressed_student_must_be_named(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        artifact = new_artifact()
        compressed = replace(artifact, blueprint=artifact.blueprint.with_edit(Factorize(layers={})))
        context = new_context(Teacher(new_artifact(seed=1)))
        with pytest.raises(StageError, match=r"`dml`: `peers: 1` .*name its peers.*`peers: \[teacher\]`"):
            Case(compressed, context)
        Case(compressed, context, peers=["teacher"])
