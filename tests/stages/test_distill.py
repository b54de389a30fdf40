"""Facts about new students: whom they learn from, what they begin with, and the generations after them."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interruption import StoppingProgress
from observations import draws, labels
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.progress import Silent
from potstill.pipeline.seeding import seeded
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.distill import Distill
from potstill.stages.inheritance import inherit, spaced
from potstill.stages.knowledge.method import LogitMethod
from potstill.stages.knowledge.objective import Distillation, DistillationObjective, confidence_weights, learn
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


class OfTheBatch(LogitMethod):
    """One value for all samples."""

    source = "none"

    def loss(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return (student.mean(0) - teacher.mean(0)).square().sum()


def distill(**how: Any) -> Distill:
    return Distill.model_validate({"student": {"from": "teacher"}, "epochs": 1, **how})


class TestConfidenceWeights:
    @given(seed=st.integers(0, 1000), count=st.integers(2, 5))
    @settings(max_examples=25, deadline=None)
    def test_are_one_minus_the_share_of_the_error_over_all_but_one(self, seed: int, count: int) -> None:
        logits, target = draws(count, 4, 6, seed=seed), labels(4, 6, seed)
        found = confidence_weights(logits, target)
        for sample in range(4):
            errors: list[float] = []
            for teacher in range(count):
                row = logits[teacher, sample].tolist()
                total = sum(math.exp(z) for z in row)
                errors.append(-math.log(math.exp(row[int(target[sample])]) / total))
            for teacher in range(count):
                share = math.exp(errors[teacher]) / sum(math.exp(error) for error in errors)
                assert found[teacher, sample].item() == pytest.approx((1 - share) / (count - 1), rel=1e-9)

    def test_sum_to_one_and_prefer_the_teacher_that_knows_the_label(self) -> None:
        logits, target = draws(3, 5, 6), labels(5, 6)
        logits[1, torch.arange(5), target] += 10
        found = confidence_weights(logits, target)
        torch.testing.assert_close(found.sum(0), torch.ones(5, dtype=torch.float64))
        assert found.argmax(0).tolist() == [1] * 5


class TestSeveralTeachers:
    def terms(self, student: Artifact, context: Context, **given: Any) -> tuple[dict[str, Tensor], Tensor]:
        """One step's terms, and the logits of student and both teachers (3, B, C)."""
        objective = DistillationObjective(Distillation.model_validate(given), student.model, student.blueprint, context)
        batch = context.data.train.batch(torch.arange(6))
        model = student.model.eval()
        terms = objective.terms(model, batch, Moment(0, 10, 0))
        networks = [model, context.require_teacher().artifact.model, context.artifacts["assistant"].model]
        with torch.no_grad():
            return terms, torch.stack([network.eval()(*batch.inputs.values()) for network in networks]).double()

    @pytest.fixture
    def context(self, new_artifact: NewArtifact, new_context: NewContext) -> Context:
        """With a teacher and an assistant of other depth and width."""
        context = new_context(Teacher(new_artifact(seed=1, width=16)))
        return replace(context, artifacts={"assistant": new_artifact(seed=2, depth=14)})

    def soft_targets(self, student: Tensor, teacher: Tensor) -> list[float]:
        losses: list[float] = []
        for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
            exp_s, exp_t = ([math.exp(z / 4) for z in row] for row in (z_s, z_t))
            pairs = [(t / sum(exp_t), s / sum(exp_s)) for t, s in zip(exp_t, exp_s, strict=True)]
            losses.append(16 * sum(p * (math.log(p) - math.log(q)) for p, q in pairs))
        return losses

    def test_count_alike_on_average(self, new_artifact: NewArtifact, context: Context) -> None:
        terms, (student, teacher, assistant) = self.terms(
            new_artifact(), context, knowledge=[{"kd": {"weight": 1}}], teachers=["teacher", "assistant"]
        )
        both = [self.soft_targets(student, each) for each in (teacher, assistant)]
        assert terms["kd"].item() == pytest.approx(sum(map(sum, both)) / 12, rel=1e-3)

    def test_count_in_each_sample_by_their_confidence(self, new_artifact: NewArtifact, context: Context) -> None:
        terms, (student, teacher, assistant) = self.terms(
            new_artifact(),
            context,
            knowledge=[{"kd": {"weight": 1}}],
            teachers=["teacher", "assistant"],
            combine="confidence",
        )
        weights = confidence_weights(torch.stack([teacher, assistant]), context.data.train.target[:6])
        expected = 0.0
        for number, each in enumerate((teacher, assistant)):
            for sample, loss in enumerate(self.soft_targets(student, each)):
                expected += float(weights[number, sample]) * loss / 6
        assert terms["kd"].item() == pytest.approx(expected, rel=1e-3)

    def test_do_not_weigh_what_a_student_learns_without_them(self, new_artifact: NewArtifact, context: Context) -> None:
        found: list[float] = []
        for combine in ("average", "confidence"):
            terms, _ = self.terms(
                new_artifact(),
                context,
                knowledge=["kd", "dml"],
                teachers=["teacher", "assistant"],
                combine=combine,
            )
            found.append(terms["dml"].item())
        assert found[0] == found[1]

    def test_need_a_loss_of_each_sample_to_be_weighed(self, new_artifact: NewArtifact, context: Context) -> None:
        with pytest.raises(StageError, match=r"compares samples with each other.*`combine: average`"):
            self.terms(
                new_artifact(),
                context,
                knowledge=[OfTheBatch()],
                teachers=["teacher", "assistant"],
                combine="confidence",
            )

    def test_that_no_step_made_are_named_with_those_there_are(
        self, new_artifact: NewArtifact, context: Context
    ) -> None:
        with pytest.raises(StageError, match=r"`tutor`.*no earlier step; there are teacher, assistant"):
            distill(teachers=["tutor"]).run(new_artifact(), context)


class TestGenerations:
    @pytest.mark.parametrize("teachers", [["teacher"], ["assistant"], ["teacher", "assistant"]])
    def test_each_begins_anew_and_after_the_first_learns_from_the_one_before(
        self, teachers: list[str], new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        """Both generations made by hand."""
        origin, assistant = new_artifact(seed=1), new_artifact(seed=2)
        contexts = [
            replace(new_context(Teacher(origin), step=step), artifacts={"assistant": assistant}) for step in ("a", "b")
        ]
        made = distill(generations=2, teachers=teachers).run(origin, contexts[0])
        assert [point.epoch for point in contexts[0].journal.curve] == [1.0, 2.0]

        first = self.taught("generation-1", distill(teachers=teachers), origin, contexts[1], "student")
        context = replace(contexts[1], teacher=Teacher(first))
        second = self.taught("generation-2", distill(), origin, context, "student", 2)
        assert same_weights(made.model, second.model)
        assert not same_weights(first.model, second.model)

    def taught(self, name: str, stage: Distill, origin: Artifact, context: Context, *seed: str | int) -> Artifact:
        with seeded(context.seed, *seed):
            student = origin.blueprint.build()
        learn(student, stage, origin.blueprint, context, name=name)
        return replace(origin, model=student)

    @pytest.mark.parametrize("interrupted_at", [2, 7])
    def test_interrupted_go_on_to_the_undisturbed_weights_and_curve(
        self, interrupted_at: int, new_artifact: NewArtifact, new_context: NewContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Five steps a generation: in the first one, and in the second."""
        origin, stage = new_artifact(seed=1), distill(generations=2, knowledge=["kd", "hint"])
        calm = new_context(Teacher(origin), step="calm")
        undisturbed = stage.run(origin, calm)

        # A constant of the loop: with none of it between checkpoints, each step leaves one.
        monkeypatch.setattr("potstill.pipeline.training.CHECKPOINT_SECONDS", 0.0)
        stormy = new_context(Teacher(origin), step="stormy")
        with pytest.raises(KeyboardInterrupt):
            stage.run(origin, replace(stormy, progress=StoppingProgress(interrupted_at)))
        stormy.journal.curve.clear()
        resumed = stage.run(origin, replace(stormy, progress=Silent()))
        assert same_weights(undisturbed.model, resumed.model)
        assert stormy.journal.curve == calm.journal.curve

    def test_are_rehearsed_without_training(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        origin = new_artifact(seed=1)
        context = new_context(Teacher(origin))
        distill(generations=3).untrained().run(origin, context)
        assert context.journal.curve == []

    def test_all_begin_with_the_runs_teachers_weights_where_they_are_to(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        origin = new_artifact(seed=1, width=16)
        student = {"from": "teacher", "width": 0.5, "weights": "teacher"}
        stage = distill(student=student, generations=2).untrained()
        made = stage.run(origin, new_context(Teacher(origin)))
        expected = made.blueprint.build()
        inherit(expected, origin.model)
        assert same_weights(made.model, expected)


class TestInheritance:
    def test_takes_evenly_spaced_channels_of_the_first_blocks(self, new_artifact: NewArtifact) -> None:
        large, small = new_artifact(depth=14, width=16).model, new_artifact(seed=1).model
        inherit(small, large)
        theirs = large.state_dict()
        weight, source = small.state_dict()["layer2.0.conv1.weight"], theirs["layer2.0.conv1.weight"]
        assert tuple(weight.shape) == (16, 8, 3, 3)
        assert tuple(source.shape) == (32, 16, 3, 3)
        for out in range(16):
            for into in range(8):
                assert torch.equal(weight[out, into], source[2 * out, 2 * into])
        assert torch.equal(small.state_dict()["linear.bias"], theirs["linear.bias"])

    def test_of_a_network_of_the_same_size_copies_it(self, new_artifact: NewArtifact) -> None:
        one, other = new_artifact(seed=1).model, new_artifact(seed=2).model
        inherit(other, one)
        assert same_weights(one, other)

    @given(of=st.integers(1, 300), data=st.data())
    @settings(max_examples=50, deadline=None)
    def test_positions_are_spaced_evenly(self, of: int, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, of))
        positions = spaced(of, count, torch.device("cpu")).tolist()
        assert positions[0] == 0
        assert positions[-1] < of
        gaps = {after - before for before, after in pairwise(positions)}
        assert gaps <= {of // count, -(-of // count)}

    def test_from_a_smaller_network_says_which_weight_it_lacks(self, new_artifact: NewArtifact) -> None:
        with pytest.raises(StageError, match=r"`conv1\.weight` \(16, 1, 3, 3\).*there: \(8, 1, 3, 3\).*`weights: new`"):
            inherit(new_artifact(width=16).model, new_artifact().model)
        with pytest.raises(StageError, match=r"there: none"):
            inherit(new_artifact(depth=14).model, new_artifact().model)


class TestStudents:
    def test_of_the_teachers_own_structure_need_no_factors(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        origin = new_artifact(seed=1, depth=14, width=8)
        made = distill().untrained().run(origin, new_context(Teacher(origin)))
        assert made.blueprint == origin.blueprint
        assert not same_weights(made.model, origin.model)
