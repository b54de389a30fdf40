"""Facts about the residual networks for small images."""

from typing import Any

import pytest
import torch
from torch import nn

from potstill.pipeline.cost import num_parameters
from potstill.pipeline.networks.resnet import ResNet

CIFAR = (3, 32, 32)
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}


def small(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(**{"depth": 8, "width": 8, **settings}).build(CIFAR, 10)


@pytest.mark.parametrize("depth", PARAMETERS)
def test_it_has_the_parameters_of_the_paper(depth: int) -> None:
    assert num_parameters(ResNet(depth=depth, shortcut="pad").build(CIFAR, 10)) == PARAMETERS[depth]


def test_its_outputs_are_logits_for_images_of_odd_sizes_too() -> None:
    model = ResNet(depth=8, width=8).build((1, 30, 17), 7)
    assert model(torch.zeros(2, 1, 30, 17)).shape == (2, 7)


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
@pytest.mark.parametrize("stem", [None, 4])
def test_its_shortcuts_change_shape_where_the_blocks_do(shortcut: str, stem: int | None) -> None:
    model = small(shortcut=shortcut, depth=14, stem=stem)
    kinds = [type(block.shortcut) for block in model.modules() if hasattr(block, "shortcut")]
    assert [kind is nn.Identity for kind in kinds] == [stem is None, True, False, True, False, True]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_stride_of_the_first_stage_sets_the_size_of_all_maps(stride: int) -> None:
    sizes: list[tuple[int, ...]] = []
    model = small(stride=stride, depth=14)
    for stage in ("layer1", "layer2", "layer3"):
        model.get_submodule(stage).register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [(8, 32 // stride, 32 // stride), (16, 16 // stride, 16 // stride), (32, 8 // stride, 8 // stride)]


def test_a_padding_shortcut_drops_every_second_pixel_and_adds_zero_channels_on_both_sides() -> None:
    shortcut = small(shortcut="pad").get_submodule("layer2.0.shortcut")
    x = torch.randn(1, 8, 6, 6)
    y = shortcut(x)
    assert torch.equal(y[:, 4:12], x[:, :, ::2, ::2])
    assert y[:, :4].abs().sum() + y[:, 12:].abs().sum() == 0


def test_a_padding_shortcut_behind_a_narrower_stem_keeps_every_pixel() -> None:
    shortcut = small(shortcut="pad", stem=4).get_submodule("layer1.0.shortcut")
    x = torch.randn(1, 4, 6, 6)
    assert torch.equal(shortcut(x)[:, 2:6], x)


def test_activations_keep_their_size_through_freshly_drawn_convolutions() -> None:
    convolution = small(width=64).get_submodule("layer1.0.conv1")
    x = torch.relu(torch.randn(8, 64, 16, 16))
    with torch.no_grad():
        y = convolution(x)
    assert float(y.var() / 2 / x.square().mean()) == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize(
    ("width", "depth", "expected"),
    [
        (0.5, 1.0, (16, 20, 8)),
        (0.4, 1.0, (16, 20, 8)),
        (0.1, 1.0, (8, 20, 8)),
        (1.0, 0.5, (32, 14, 16)),
        (1.0, 0.1, (32, 8, 16)),
        (2.0, 2.0, (64, 38, 32)),
    ],
)
def test_it_is_scaled_to_whole_blocks_and_multiples_of_8_channels(
    width: float, depth: float, expected: tuple[int, int, int]
) -> None:
    scaled = ResNet(width=32, depth=20, stem=16, shortcut="pad").scaled(width=width, depth=depth)
    assert scaled == ResNet(width=expected[0], depth=expected[1], stem=expected[2], shortcut="pad")
    assert ResNet(width=32).scaled(width=width, depth=depth).stem is None
