"""Facts about what a model costs, against torch's own counter and against loops on paper."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from potstill.pipeline.cost import macs, macs_by_layer, num_parameters
from potstill.pipeline.networks.resnet import ResNet


def test_macs_are_half_of_the_flops_that_torch_counts() -> None:
    model = ResNet(depth=8, width=8).build((3, 16, 16), 5).eval()
    image = torch.zeros(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert 2 * macs(model, {"image": image}) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (1, 4, 8, 8), 4 * 4 * 6 * 2 * 9),
        (nn.Conv1d(4, 6, 5), (1, 4, 9), 5 * 6 * 4 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 8, 8), 8 * 8 * 4 * 6 * 4),
        (nn.Linear(4, 6), (1, 7, 4), 7 * 4 * 6),
    ],
)
def test_a_layer_costs_its_weights_at_every_position(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert macs_by_layer(nn.Sequential(layer), {"x": torch.zeros(shape)}) == {"0": expected}


def test_the_batch_does_not_count() -> None:
    model = nn.Sequential(nn.Linear(4, 6))
    assert macs(model, {"x": torch.zeros(32, 4)}) == macs(model, {"x": torch.zeros(1, 4)}) == 24


def test_a_layer_counts_as_often_as_it_runs() -> None:
    layer = nn.Linear(4, 4)
    assert macs_by_layer(nn.Sequential(layer, layer), {"x": torch.zeros(1, 4)}) == {"0": 32}


def test_counting_leaves_mode_and_statistics_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    macs(model, {"x": torch.ones(2, 1, 3, 3)})
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(4, 4)
    assert num_parameters(nn.Sequential(layer, layer)) == 20
