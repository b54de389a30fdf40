"""Facts about what a student learns from."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment, metric_of
from potstill.stages.distill import Distill
from potstill.stages.knowledge.anatomy import Anatomy
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.knowledge.response.kd import SoftTargets, soft_targets
from potstill.stages.stage import Context
from potstill.stages.train import Train

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def soft_targets_by_loops(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Hinton's formula, element by element."""
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        exp_s = [math.exp(z / temperature) for z in z_s]
        exp_t = [math.exp(z / temperature) for z in z_t]
        for s, t in zip(exp_s, exp_t, strict=True):
            p, q = t / sum(exp_t), s / sum(exp_s)
            total += p * (math.log(p) - math.log(q))
    return temperature**2 * total / len(student)


class TestSoftTargets:
    @given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 20))
    @settings(max_examples=25, deadline=None)
    def test_equal_the_formula(self, seed: int, temperature: float) -> None:
        draws = torch.Generator().manual_seed(seed)
        student, teacher = torch.randn(2, 5, 7, generator=draws, dtype=torch.float64).unbind()
        expected = soft_targets_by_loops(student, teacher, temperature)
        assert float(soft_targets(student, teacher, temperature).mean()) == pytest.approx(expected, rel=1e-9)

    def test_are_zero_for_a_student_that_equals_the_teacher(self) -> None:
        logits = torch.randn(4, 10)
        assert float(soft_targets(logits, logits, 4.0).mean()) == pytest.approx(0, abs=1e-6)

    def test_do_not_shrink_with_the_number_of_classes(self) -> None:
        """The mean is over samples; one over samples and classes would divide by the classes too."""
        student, teacher = torch.zeros(3, 10), torch.zeros(3, 10)
        teacher[:, 0] = 50.0
        assert float(soft_targets(student, teacher, 1.0).mean()) == pytest.approx(math.log(10), rel=1e-5)

    def test_gradients_keep_their_size_at_high_temperatures(self) -> None:
        norms: list[float] = []
        for temperature in (50.0, 100.0):
            student = torch.tensor([[1.0, -1.0, 0.5]], requires_grad=True)
            soft_targets(student, torch.tensor([[0.2, 1.0, -2.0]]), temperature).mean().backward()
            assert student.grad is not None
            norms.append(float(student.grad.norm()))
        assert norms[0] == pytest.approx(norms[1], rel=0.05)


class TestKnowledgeList:
    def test_an_entry_names_exactly_one_method(self) -> None:
        for entry in ({"kd": {}, "hint": {}}, {}):
            with pytest.raises(ValidationError, match=r"exactly one of .*kd, .*such as"):
                Distillation.model_validate({"knowledge": [entry]})

    def test_nothing_to_learn_from_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="nothing to learn from"):
            Distillation.model_validate({"knowledge": [], "task_weight": 0})


class TestHints:
    def test_auto_takes_the_ends_of_the_resolution_stages(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        anatomy = Anatomy(new_artifact().model, new_context().data.example())
        assert anatomy.stage_ends() == ["layer1", "layer2", "layer3"]

    def test_projectors_bridge_other_widths_and_stay_out_of_the_student(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact(depth=14, width=16)))
        student = Distill.model_validate(
            {"student": {"from": "teacher", "width": 0.5, "depth": 0.5}, "knowledge": [{"hint": {}}], "epochs": 1}
        ).run(new_artifact(), context)
        assert set(student.model.state_dict()) == set(student.blueprint.build().state_dict())
        assert not any(module._forward_hooks for module in student.model.modules())

    def test_projectors_are_trained(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        student = deepcopy(new_artifact().model)
        settings = Distillation.model_validate({"knowledge": [{"hint": {}}]})
        objective = DistillationObjective(settings, student, new_artifact().blueprint, context)
        batch = context.data.train.batch(torch.arange(8))
        objective.terms(student, batch, Moment(0, 1, 0))["hint"].backward()
        gradients = [parameter.grad for parameter in objective.parameters()]
        assert gradients
        assert all(gradient is not None for gradient in gradients)

    def test_an_unknown_layer_is_named_with_its_nearest_match(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact()))
        hint = {"hint": {"layers": [{"student": "layr2", "teacher": "layer2"}]}}
        stage = Distill.model_validate({"student": {"from": "teacher"}, "knowledge": [hint], "epochs": 1})
        with pytest.raises(StageError, match=r"student has no layer `layr2`.*`layer2`"):
            stage.run(new_artifact(), context)


class TestWeights:
    def test_rise_fall_and_end_with_the_training(self) -> None:
        method = SoftTargets(weight=2.0, warmup=0.25, decay=0.25, until=0.75)
        shares = [0.0, 0.125, 0.25, 0.5, 0.625, 0.75, 0.9]
        assert [method.weight_at(share) for share in shares] == [0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0]

    def test_multiply_what_the_term_gives(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        student, batch = new_artifact().model, context.data.train.batch(torch.arange(8))
        found: list[Tensor] = []
        for weight, moment in ((1.0, Moment(0, 4, 0)), (3.0, Moment(0, 4, 0)), (3.0, Moment(2, 4, 1))):
            entry = {"kd": {"weight": weight, "decay": 1.0}}
            objective = DistillationObjective(
                Distillation.model_validate({"knowledge": [entry]}), student, new_artifact().blueprint, context
            )
            found.append(objective.terms(student, batch, moment)["kd"])
        torch.testing.assert_close(found[1], 3 * found[0])
        torch.testing.assert_close(found[2], 1.5 * found[0])

    @pytest.mark.parametrize(
        ("knowledge", "expected"), [(["kd"], 0.1), (["hint"], 1.0), (["hint", "kd"], 0.1), ([], 1.0)]
    )
    def test_of_the_task_is_by_default_what_the_methods_ask_for(self, knowledge: list[str], expected: float) -> None:
        assert Distillation.model_validate({"knowledge": knowledge}).balanced_task_weight == expected
        given = Distillation.model_validate({"knowledge": knowledge, "task_weight": 0.5})
        assert given.balanced_task_weight == 0.5

    def test_of_zero_leave_the_teacher_alone(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        student = deepcopy(new_artifact().model)
        settings = Distillation.model_validate({"knowledge": [{"hint": {"until": 0.5}}]})
        objective = DistillationObjective(settings, student, new_artifact().blueprint, context)
        batch = context.data.train.batch(torch.arange(8))
        terms = objective.terms(student, batch, Moment(3, 4, 1))
        assert float(terms["hint"]) == 0
        assert not terms["hint"].requires_grad


class TestRehearsal:
    def test_runs_terms_that_a_training_would_begin_without(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        settings = Distillation.model_validate({"knowledge": [{"hint": {"warmup": 0.5, "until": 0.6}}]})
        batch, student = context.data.train.batch(torch.arange(8)), new_artifact()
        for rehearsal in (True, False):
            objective = DistillationObjective(settings, student.model, student.blueprint, context, rehearsal=rehearsal)
            found = objective.terms(deepcopy(student.model), batch, Moment(0, 10, 0))["hint"]
            assert bool(found > 0) == rehearsal

    def test_finds_a_pair_that_a_method_cannot_serve_without_training(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        context = new_context(Teacher(new_artifact()))
        entry = {"hint": {"layers": [{"student": "layer9", "teacher": "layer2"}]}}
        stage = Distill.model_validate({"student": {"from": "teacher"}, "knowledge": [entry], "epochs": 3})
        with pytest.raises(StageError, match="layer9"):
            stage.untrained().run(new_artifact(), context)

    def test_leaves_the_student_as_it_was(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        stage = Distill.model_validate({"student": {"from": "teacher"}, "knowledge": ["kd", "hint"], "epochs": 0})
        first, second = (stage.run(new_artifact(), context).model for _ in range(2))
        assert all(
            torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
        )
        assert int(first.get_buffer("bn1.num_batches_tracked")) == 0


class TestJournal:
    def test_tells_each_term_with_its_weight_and_taps(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        settings = Distillation.model_validate(
            {"knowledge": ["kd", "hint", {"hint": {"layers": "layer2", "weight": 3}}]}
        )
        DistillationObjective(settings, new_artifact().model, new_artifact().blueprint, context)
        assert context.journal.facts["task weight"] == 0.1
        assert context.journal.facts["knowledge"] == [
            {"term": "kd", "method": "kd", "weight": 0.9, "taps": ""},
            {
                "term": "hint",
                "method": "hint",
                "weight": 1.0,
                "taps": "layer1 → layer1, layer2 → layer2, layer3 → layer3",
            },
            {"term": "hint#2", "method": "hint", "weight": 3.0, "taps": "layer2 → layer2"},
        ]

    def test_has_each_terms_share_of_the_gradient(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(Teacher(new_artifact(width=16)))
        stage = Distill.model_validate({"student": {"from": "teacher"}, "knowledge": ["kd", "hint"], "epochs": 2})
        stage.run(new_artifact(), context)
        for point in context.journal.curve:
            assert point.gradient_shares is not None
            assert set(point.gradient_shares) == {"task", "kd", "hint"}
            assert sum(point.gradient_shares.values()) == pytest.approx(1)


class TestDistill:
    def test_the_student_learns_the_task(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        context = new_context(step="train")
        teacher = Train(epochs=4).run(new_artifact(width=16), context)
        context = new_context(Teacher(teacher), step="distill")
        stage = Distill.model_validate({"student": {"from": "teacher", "width": 0.5}, "epochs": 10})
        student = stage.run(teacher, context)
        assert metric_of(student.model, context.data.test, context) > 0.9
        assert {"task", "kd"} == set(context.journal.curve[0].terms)

    def test_without_a_teacher_it_says_how_to_get_one(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        stage = Distill.model_validate({"student": {"from": "teacher"}, "epochs": 1})
        with pytest.raises(StageError, match=r"teacher\.weights"):
            stage.run(new_artifact(), new_context())


class TestTeacher:
    def test_logits_belong_to_the_samples_of_the_batch_whatever_their_order(
        self, new_artifact: NewArtifact, new_context: NewContext
    ) -> None:
        artifact = new_artifact(seed=3)
        teacher, context = Teacher(artifact), new_context()
        index = torch.tensor([7, 3, 150, 0])
        batch = context.data.train.batch(index)
        with torch.no_grad():
            expected = artifact.model(*batch.inputs.values())
        torch.testing.assert_close(teacher.logits(batch, context), expected, rtol=1e-4, atol=1e-5)

    def test_asks_for_no_gradients(self, new_artifact: NewArtifact, new_context: NewContext) -> None:
        teacher, context = Teacher(new_artifact()), new_context()
        assert not teacher.logits(context.data.train.batch(torch.arange(4)), context).requires_grad
        assert not any(parameter.requires_grad for parameter in teacher.model(context).parameters())
