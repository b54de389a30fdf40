"""Facts about learned grids: their gradients, and what is left of them when the training is over."""

import pytest
import torch
from torch import Tensor

from potstill.pipeline.fake_quantization import ActivationQuantizer, WeightQuantizer
from potstill.pipeline.learned_steps import LearnedActivation, LearnedWeight
from potstill.pipeline.quantization import ActivationRange


def learned_weight(weight: Tensor, scale: float) -> LearnedWeight:
    start = WeightQuantizer(bits=7)
    start.hold(torch.full((len(weight),), scale))
    return LearnedWeight(start)


def test_the_gradient_of_a_step_is_that_of_the_paper() -> None:
    weight = torch.tensor([[0.12, -0.33, 9.0, -9.0]], requires_grad=True)
    quantizer = learned_weight(weight, 0.1)
    quantizer(weight).sum().backward()
    # Inside: round(w/s) - w/s; beyond the ends: the last codes, which cancel here; all over the root of 4 · 63.
    expected = ((1 - 1.2) + (-3 + 3.3) + 63 - 63) / (4 * 63) ** 0.5
    assert quantizer.step.grad is not None
    assert float(quantizer.step.grad) == pytest.approx(expected, abs=1e-6)
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_the_gradients_of_scale_and_offset_are_those_of_the_clipped_line() -> None:
    quantizer = LearnedActivation(ActivationRange(scale=0.1, zero_point=100))
    values = torch.tensor([[0.12, -20.0, 30.0]], requires_grad=True)
    quantizer(values).mul(torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    gain = (3 * 255) ** -0.5
    assert quantizer.step.grad is not None
    assert quantizer.offset is not None
    assert quantizer.offset.grad is not None
    # Below the grid the value is the offset, whatever the step; above it is 255 steps more.
    assert float(quantizer.step.grad) == pytest.approx(gain * ((1 - 1.2) + 2 * 0 + 3 * 255), rel=1e-5)
    assert float(quantizer.offset.grad) == pytest.approx(gain * (2 + 3), rel=1e-5)


@pytest.mark.parametrize("offset", [-3.217, -0.001, 0.4, -40.0])
def test_zero_stays_on_the_grid_whatever_the_offset_became(offset: float) -> None:
    quantizer = LearnedActivation(ActivationRange(scale=0.1, zero_point=100))
    assert quantizer.offset is not None
    with torch.no_grad():
        quantizer.offset.fill_(offset)
    assert float(quantizer(torch.zeros(1, 1)).detach()) == 0.0
    assert 0 <= quantizer.range().zero_point <= 255


def test_a_rectified_activation_keeps_its_zero_point_of_zero() -> None:
    quantizer = LearnedActivation(ActivationRange(scale=0.1, zero_point=0))
    assert [name for name, _ in quantizer.named_parameters()] == ["step"]
    assert quantizer.range() == ActivationRange(scale=quantizer.range().scale, zero_point=0)


def test_a_step_that_an_optimizer_threw_below_zero_still_makes_a_grid_and_comes_back() -> None:
    weight = torch.tensor([[0.5, -0.25]])
    quantizer = learned_weight(weight, 0.1)
    with torch.no_grad():
        quantizer.step.fill_(-0.01)
    (quantizer(weight) - weight).square().sum().backward()
    assert quantizer.step.grad is not None
    assert float(quantizer.step.grad) < 0
    assert float(quantizer.held()) > 0


def test_learned_grids_start_as_those_that_were_calibrated() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    plain = WeightQuantizer(bits=8)
    assert torch.equal(plain(values), LearnedWeight(plain)(values))


def test_weights_beyond_a_learned_grid_end_at_its_last_code() -> None:
    weight = torch.tensor([[0.12, -0.33, 9.0, -9.0]])
    quantizer = learned_weight(weight, 0.1)
    clipped = quantizer.clipped(weight)
    assert torch.equal(quantizer(clipped), quantizer(weight))
    assert float((clipped / 0.1).abs().max()) == pytest.approx(63)
    assert float((quantizer(weight) / 0.1).detach().abs().max()) == pytest.approx(63)


def test_a_learned_symmetric_grid_keeps_its_middle_and_rounds_both_signs_as_before() -> None:
    values = torch.linspace(-1.5, 1.5, 41).view(1, -1)
    start = ActivationRange(scale=0.01, zero_point=128)
    plain = ActivationQuantizer(grids="symmetric").eval()
    plain.set_range(start)
    learned = LearnedActivation(start, "symmetric")
    assert torch.equal(learned(values), plain(values))
    assert learned.offset is None
    with torch.no_grad():
        learned.step.fill_(0.02)
    assert learned.range().zero_point == 128
    assert learned.range().scale == pytest.approx(0.02)
