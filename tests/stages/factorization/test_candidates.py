"""Facts about layers that stay whole: each is named, with the reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.stages.factorization.candidates import candidates, left_alone
from potstill.stages.factorize import Factorize, Keep
from potstill.stages.recovery import Recovery
from potstill.stages.stage import Context
from tests.support.contexts import context_on
from tests.support.family_data import family_artifact, family_data

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


class Own(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


LAYERS = [
    (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 9, 9), "a depthwise convolution"),
    (nn.Conv2d(8, 8, 3, groups=2), (1, 8, 9, 9), "a convolution in 2 groups"),
    (nn.Conv2d(8, 8, 3), (1, 8, 9, 9), "only `kinds` of tucker2, spatial, cp are for it"),
    (nn.Conv1d(8, 8, 3), (1, 8, 9), "no kind of factors is for a Conv1d"),
    (nn.ConvTranspose2d(8, 8, 2, 2), (1, 8, 9, 9), "no kind of factors is for a ConvTranspose2d"),
    (Own(8, 8), (1, 8), "no kind of factors is for a Own"),
]


@pytest.mark.parametrize(("layer", "shape", "reason"), LAYERS, ids=lambda value: str(value)[:20])
def test_every_layer_that_is_left_alone_has_its_reason(layer: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    model, inputs = nn.Sequential(layer), {"x": torch.zeros(shape)}
    assert left_alone(model, inputs, ("svd",)) == {"0": reason}
    assert candidates(model, inputs, ("svd",), 8) == {}


def test_a_layer_that_does_not_run_is_neither_a_candidate_nor_left_alone() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model, inputs = Half().train(), {"x": torch.zeros(1, 8)}
    assert list(candidates(model, inputs, ("svd",), 8)) == ["used"]
    assert left_alone(model, inputs, ("svd",)) == {}
    assert model.training


def test_depthwise_convolutions_are_named_in_the_facts_and_stay(tmp_path: Path) -> None:
    data = family_data("mobilenet_v3")
    context = context_on(data, tmp_path)
    stage = Factorize(keep=Keep(energy=0.3), round_to=2, recover=Recovery(epochs=0))
    factorized = stage.run(family_artifact("mobilenet_v3", data), context)
    told = context.journal.facts["left alone"]
    assert isinstance(told, list)
    depthwise = [path for path, layer in factorized.model.named_modules() if getattr(layer, "groups", 1) > 1]
    assert depthwise
    assert told == [f"{path}: a depthwise convolution" for path in depthwise]


def test_a_model_of_nothing_else_says_why_for_each(new_artifact: NewArtifact, new_context: NewContext) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(StageError, match=r"by svd; 0: only `kinds` of tucker2.*; 1: a depthwise convolution\. Mend"):
        Factorize(keep=Keep(energy=0.5), kinds=("svd",)).run(replace(new_artifact(), model=model), new_context())
