"""Facts about training with methods of class activations, review and transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from nets import Encoder
from torch import nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.teacher import Teacher
from potstill.pipeline.training import Moment
from potstill.stages.knowledge.objective import Distillation, DistillationObjective
from potstill.stages.quantize import Quantize
from potstill.stages.stage import Context

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]

ON_MAPS: list[dict[str, Any]] = [
    {"lwm": {}},
    {"lwm": {"of": "label", "layers": "layer?"}},
    {"cat_kd": {}},
    {"cat_kd": {"normalize": False}},
    {"review_kd": {"warmup": 0}},
]
ON_TOKENS: list[dict[str, Any]] = [
    {"hidden_states": {"embeddings": True}},
    {"attention": {}},
    {"attention": {"distance": "kl"}},
    {"value_relation": {}},
    {"cat_kd": {}},
    {"review_kd": {"warmup": 0}},
    {"hint": {}},
]


def trains(entry: dict[str, Any], student: nn.Module, artifact: Artifact, teacher: nn.Module, context: Context) -> None:
    """Two steps in which the method's own loss alone moves student and projectors."""
    context = replace(context, teacher=Teacher(replace(artifact, model=teacher)))
    settings = Distillation.model_validate({"knowledge": [entry], "task_weight": 0})
    objective = DistillationObjective(settings, student.train(), artifact.blueprint, context)
    parameters = [*student.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for step in range(2):
        batch = context.data.train.batch(torch.arange(8 * step, 8 * step + 8))
        terms = objective.terms(student, batch, Moment(step, 2, 0))
        assert set(terms) == set(entry)
        loss = torch.stack(list(terms.values())).sum()
        assert torch.isfinite(loss)
        assert loss > 0
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert next(student.parameters()).grad is not None
        assert all(parameter.grad is not None for parameter in objective.parameters())
        optimizer.step()


@pytest.mark.parametrize("entry", ON_MAPS, ids=str)
def test_convolutional_networks_train_in_mixed_precision(
    entry: dict[str, Any], new_artifact: NewArtifact, new_context: NewContext
) -> None:
    artifact = new_artifact(depth=14, width=16)
    trains(entry, new_artifact(seed=1).model, artifact, artifact.model, replace(new_context(), precision="bf16"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("entry", ON_TOKENS, ids=str)
def test_transformers_train(
    entry: dict[str, Any], precision: str, new_artifact: NewArtifact, new_context: NewContext
) -> None:
    teacher = Encoder(depth=4, width=12)
    trains(entry, Encoder(depth=2), new_artifact(), teacher, replace(new_context(), precision=precision))


@pytest.mark.parametrize("method", ["lwm", "cat_kd", "review_kd"])
def test_quantized_students_train(method: str, new_artifact: NewArtifact, new_context: NewContext) -> None:
    context = new_context(Teacher(new_artifact(width=16)))
    stage = Quantize.model_validate({"recover": {"epochs": 1, "knowledge": ["kd", {method: {"warmup": 0}}]}})
    stage.run(new_artifact(seed=1), context)
    shares = context.journal.curve[0].gradient_shares
    assert shares is not None
    assert shares[method] > 0
