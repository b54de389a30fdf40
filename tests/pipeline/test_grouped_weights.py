"""Facts about weights in groups, each on a grid of its own."""

import pytest
import torch

from potstill.pipeline.grouped_weights import GroupedGrid, dequantize_groups

INPUTS = 72
"""Two groups of 32, and a quarter of one."""


@pytest.fixture
def weight() -> torch.Tensor:
    """Of five outputs."""
    return torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_and_grids_give_the_rounded_weight(bits: int, weight: torch.Tensor) -> None:
    grid = GroupedGrid(bits=bits, group_size=32)
    stored = grid.stored(weight)
    assert stored.codes.shape == weight.shape
    assert stored.scale.shape == stored.zero_point.shape == (5, 3)
    assert int(stored.codes.max()) == grid.largest_code
    again = dequantize_groups(stored.codes, stored.scale, stored.zero_point, 32)
    assert torch.equal(again, grid.rounded(weight))


@pytest.mark.parametrize("bits", [4, 8])
def test_no_value_moves_by_more_than_a_step_and_zeros_stay(bits: int, weight: torch.Tensor) -> None:
    weight[:, ::3] = 0
    grid = GroupedGrid(bits=bits, group_size=32)
    rounded, scale = grid.rounded(weight), grid.stored(weight).scale
    # The zero point is rounded, so the ends of the range may lie up to a whole step off; the others half of one.
    steps = (rounded - weight).abs() / scale.repeat_interleave(32, 1)[:, :INPUTS]
    assert float(steps.max()) <= 1.0
    assert float(steps.mean()) < 0.3
    assert not rounded[:, ::3].any()


def test_more_groups_come_nearer_to_the_weight(weight: torch.Tensor) -> None:
    errors = [float((GroupedGrid(bits=4, group_size=size).rounded(weight) - weight).norm()) for size in (8, 32, 72)]
    assert errors == sorted(errors)


def test_gradients_pass_straight_through(weight: torch.Tensor) -> None:
    weight.requires_grad_()
    GroupedGrid(bits=4, group_size=32).rounded(weight).sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.mean()) > 0.95


def test_a_group_of_zeros_stays_zero() -> None:
    assert not GroupedGrid(bits=4, group_size=32).rounded(torch.zeros(2, 32)).any()
