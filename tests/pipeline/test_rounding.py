"""Facts about rounding to grids: the bits and the gradients of torch's own fake quantizers."""

import pytest
import torch
from torch import Tensor

from potstill.pipeline.rounding import in_memory_order, rounded


def images_with_ties(scale: float, dtype: torch.dtype) -> Tensor:
    """Images in channels-last order, some values half way between two codes, some beyond the grid."""
    values = 2 * torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    values.view(-1)[:400] = (torch.arange(400) - 150.5) * scale
    return values.to(memory_format=torch.channels_last).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.0137, 0), (0.02, 77), (1 / 3, 255), (1e-3, 128)])
def test_values_and_gradients_are_those_of_torchs_fake_quantizer(
    dtype: torch.dtype, scale: float, zero_point: int
) -> None:
    grid = torch.tensor([scale]), torch.tensor([zero_point], dtype=torch.int32)
    values = images_with_ties(scale, dtype)
    upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    mine = rounded(ours, *grid, 0, 255)
    reference = torch.fake_quantize_per_tensor_affine(theirs.float(), *grid, 0, 255).to(dtype)
    assert torch.equal(mine, reference)
    mine.backward(upstream)
    reference.backward(upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < int((ours.grad == 0).sum()) < values.numel()


def test_channels_on_grids_of_their_own_are_those_of_torchs_fake_quantizer() -> None:
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().flatten(1).amax(1) / 127
    reference = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(16, dtype=torch.int32), 0, -128, 127)
    assert torch.equal(rounded(weight, scale.view(-1, 1, 1, 1), None, -127, 127), reference)


def test_the_memory_order_of_images_is_kept() -> None:
    values = images_with_ties(0.1, torch.float32).requires_grad_()
    grid = rounded(values, torch.tensor([0.1]), torch.tensor([3]), 0, 255)
    assert grid.is_contiguous(memory_format=torch.channels_last)
    assert in_memory_order(values).is_contiguous()


def test_what_is_not_a_number_stays_none() -> None:
    assert rounded(torch.tensor([float("nan")]), torch.tensor([0.1]), torch.tensor([3]), 0, 255).isnan().all()
