"""Facts about the cost of models, counted by hand."""

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.cost import macs, macs_by_layer, num_parameters


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        pytest.param(nn.Linear(6, 5), (6,), 6 * 5, id="linear"),
        pytest.param(nn.Linear(6, 5), (7, 6), 7 * 6 * 5, id="linear over a sequence"),
        pytest.param(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 3 * 8 * 9, id="convolution"),
        pytest.param(nn.Conv2d(3, 8, 3, stride=2), (3, 9, 9), 4 * 4 * 3 * 8 * 9, id="with a stride"),
        pytest.param(nn.Conv2d(8, 8, 3, padding=1, groups=4), (8, 5, 5), 5 * 5 * 8 * 2 * 9, id="grouped"),
        pytest.param(nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 5, 5), 5 * 5 * 8 * 9, id="depthwise"),
        pytest.param(nn.Conv1d(3, 4, 5), (3, 9), 5 * 3 * 4 * 5, id="one-dimensional"),
        pytest.param(nn.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 5), 5 * 5 * 3 * 4 * 4, id="transposed"),
    ],
)
def test_a_layer_costs_its_multiplications_for_one_sample(
    layer: nn.Module, shape: tuple[int, ...], expected: int
) -> None:
    assert macs_by_layer(nn.Sequential(layer), {"x": torch.zeros(3, *shape)}) == {"0": expected}


def test_a_layer_that_runs_twice_counts_twice_and_one_that_never_runs_is_not_listed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.used(x))

    model, inputs = Twice(), {"x": torch.zeros(2, 4)}
    assert macs_by_layer(model, inputs) == {"used": 32}
    assert macs(model, inputs) == 32


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert num_parameters(nn.Sequential(first, second)) == 16


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    macs(model, {"x": torch.randn(4, 1, 5, 5)})
    assert model.training
    assert not model[0]._forward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
