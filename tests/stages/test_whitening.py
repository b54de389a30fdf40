"""Facts about first layers that whiten."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from potstill.pipeline.artifact import Artifact
from potstill.pipeline.errors import StageError
from potstill.pipeline.teacher import Teacher
from potstill.stages.distill import Distill
from potstill.stages.stage import Context
from potstill.stages.whitening import whitened, whitening_filters

NewArtifact = Callable[..., Artifact]
NewContext = Callable[..., Context]


def student(channels: int) -> Distill:
    model = {"name": "plain", "stem": channels, "stem_kernel": 2, "stages": [[8], [8]]}
    return Distill.model_validate({"student": model, "epochs": 1, "first_layer": "whitened"})


def correlated_images() -> torch.Tensor:
    draws = torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return functional.avg_pool2d(draws + draws.mean(1, keepdim=True), 2, 1)


@pytest.mark.parametrize("channels", [12, 24])
def test_answers_to_patches_have_no_correlation_and_a_variance_of_one(channels: int) -> None:
    images = correlated_images()
    layer = nn.Conv2d(3, channels, 2, bias=False)
    weight = whitening_filters([images], layer)
    answers = functional.conv2d(images, weight).transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(answers[:12]), torch.eye(12), atol=0.02)
    if channels == 24:
        assert torch.equal(weight[12:], -weight[:12])


def test_the_first_filters_are_of_most_variance() -> None:
    weight = whitening_filters([correlated_images()], nn.Conv2d(3, 12, 2))
    lengths = weight.flatten(1).norm(dim=1)
    assert torch.equal(lengths, lengths.sort().values)


def test_the_layer_stays_while_the_student_is_trained_and_learns_again_after(
    new_artifact: NewArtifact, new_context: NewContext
) -> None:
    origin = new_artifact()
    context = new_context(Teacher(origin))
    (images,) = context.data.train.batch(torch.arange(len(context.data.train))).inputs.values()
    made = student(8).run(origin, context)
    layer = made.model.get_submodule("conv1")
    assert isinstance(layer, nn.Conv2d)
    assert torch.equal(layer.weight, whitening_filters(images.split(100), layer))
    assert layer.weight.requires_grad
    norm = made.model.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert not torch.equal(norm.weight, torch.ones(8))


def test_another_number_of_filters_says_which_would_do(new_artifact: NewArtifact, new_context: NewContext) -> None:
    origin = new_artifact()
    with pytest.raises(StageError, match=r"1 channels and 2x2 pixels have 4 components.*4 or 8 channels, not 5"):
        student(5).run(origin, new_context(Teacher(origin)))


def test_a_student_without_convolution_says_so(new_context: NewContext) -> None:
    with pytest.raises(StageError, match="begins with a Conv2d"), whitened(nn.Linear(4, 4), new_context().data):
        pass
