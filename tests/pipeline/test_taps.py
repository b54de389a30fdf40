"""Facts about what is read while a network runs."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from potstill.pipeline.taps import outputs_of


class Net(nn.Module):
    """A convolution whose maps a later operation may change in place."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.after = after
        self.head = nn.Linear(3, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.after(self.conv(image)).square().mean((2, 3)))


AFTER = {
    "nothing": nn.Identity(),
    "a ReLU": nn.ReLU(),
    "a ReLU in place": nn.ReLU(inplace=True),
}


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
class TestTaps:
    def test_keep_the_value_that_passed(self, after: nn.Module) -> None:
        net, image = Net(after), torch.randn(2, 1, 6, 6)
        found = outputs_of(net, {"image": image}, ["conv", "after:input"])
        assert (found.maps["conv"] < 0).any()
        torch.testing.assert_close(found.maps["conv"], net.conv(image))
        torch.testing.assert_close(found.maps["after:input"], net.conv(image))

    def test_do_not_change_what_the_network_computes(self, after: nn.Module) -> None:
        net, image = Net(after), torch.randn(2, 1, 6, 6)
        torch.testing.assert_close(outputs_of(net, {"image": image}, ["conv", "after:input"]).logits, net(image))

    @pytest.mark.parametrize("tap", ["conv", "after:input"])
    def test_logits_have_gradients_by_what_passed(self, after: nn.Module, tap: str) -> None:
        """Against a network that is cut at the tap, so that what passed is a leaf."""
        net, image = Net(after), torch.randn(2, 1, 6, 6)
        found = outputs_of(net, {"image": image}, [tap])
        leaf = net.conv(image).detach().requires_grad_()
        (expected,) = torch.autograd.grad(net.head(net.after(leaf.clone()).square().mean((2, 3)))[:, 1].sum(), leaf)
        torch.testing.assert_close(found.gradient(found.logits[:, 1].sum(), tap), expected)

    def test_gradients_can_be_differentiated_again(self, after: nn.Module) -> None:
        net, image = Net(after), torch.randn(2, 1, 6, 6)
        found = outputs_of(net, {"image": image}, ["conv"])
        found.gradient(found.logits[:, 1].sum(), "conv").abs().sum().backward()
        weight = cast("Tensor", net.conv.weight.grad)
        assert torch.isfinite(weight).all()
        assert weight.abs().sum() > 0


class TestGradients:
    def test_are_in_float32_for_a_network_in_mixed_precision(self) -> None:
        net, image = Net(nn.ReLU()), torch.randn(2, 1, 6, 6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = outputs_of(net, {"image": image}, ["conv"])
        assert found.gradient(found.logits.sum(), "conv").dtype == torch.float32

    def test_are_known_of_no_network_that_ran_without(self) -> None:
        with torch.no_grad():
            found = outputs_of(Net(nn.ReLU()), {"image": torch.randn(2, 1, 6, 6)}, ["conv"])
        assert not found.edges
