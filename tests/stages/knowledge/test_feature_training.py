"""Facts about training with methods that compare maps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import Encoder, Plain
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

METHODS: dict[str, dict[str, Any]] = {
    "at": {"p": 1},
    "nst": {},
    "vid": {},
    "ab": {"until": 1},
    "ofd": {},
    "ft": {"warmup": 0},
    "afd": {},
    "mgd": {"mask": "places", "masked": 0.5},
    "srrl": {},
}
BEFORE_ACTIVATIONS = {name: {**METHODS[name], "layers": "blocks.*.mlp.1:input"} for name in ("ab", "ofd")}


def trains(name: str, settings: dict[str, Any], student: nn.Module, teacher: Teacher, context: Context) -> None:
    """Two steps in which the method alone moves student and what it trains for itself."""
    knowledge = Distillation.model_validate({"knowledge": [{name: settings}], "task_weight": 0})
    context = replace(context, teacher=teacher)
    objective = DistillationObjective(knowledge, student.train(), teacher.artifact.blueprint, context)
    parameters = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    for step in range(2):
        batch = context.data.train.batch(torch.arange(8 * step, 8 * step + 8))
        terms = objective.terms(student, batch, Moment(step, 2, 0))
        assert set(terms) == ({name, f"{name} itself"} if name == "ft" else {name})
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(each.grad).all() for each in parameters if each.grad is not None)
        assert next(iter(student.parameters())).grad is not None
        assert all(each.grad is not None for each in objective.parameters())
        optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_convolutional_networks_train_in_mixed_precision(
    name: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    teacher = Teacher(new_artifact(depth=14, width=16))
    trains(name, METHODS[name], new_artifact(seed=1).model, teacher, replace(new_context(), precision="bf16"))


@pytest.mark.parametrize("name", METHODS)
def test_transformers_train(name: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    teacher = Teacher(replace(new_artifact(), model=Encoder(depth=4, width=12)))
    trains(name, BEFORE_ACTIVATIONS.get(name, METHODS[name]), Encoder(depth=4), teacher, new_context())


@pytest.mark.parametrize("name", ["ab", "ofd"])
def test_activations_in_place_hide_nothing(name: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    teacher = Teacher(replace(new_artifact(), model=Plain(6, relu="inplace")))
    trains(name, METHODS[name], Plain(relu="inplace"), teacher, new_context())


@pytest.mark.parametrize("name", ["ofd", "srrl"])
def test_quantized_students_train(name: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    context = new_context(Teacher(new_artifact(width=16)))
    knowledge = ["kd", {name: METHODS[name]}]
    Quantize.model_validate({"recover": {"epochs": 1, "knowledge": knowledge}}).run(new_artifact(seed=1), context)
    shares = context.journal.curve[0].gradient_shares
    assert shares is not None
    assert shares[name] > 0
